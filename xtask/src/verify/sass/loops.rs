//! Natural loops of a control flow graph.

use std::collections::{BTreeMap, BTreeSet};

/// The instructions of every loop that are in no loop inside it. `next` has the instructions that may follow each one;
/// the first is the entry.
///
/// A loop is entered at its head alone: the head is on every way from the entry to the jump back. It holds what reaches
/// the jump without passing the head.
///
/// Source of the dominators: Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm" (2001).
pub fn own_instructions(next: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let order = reverse_postorder(next);
    let mut number = vec![usize::MAX; next.len()];
    order.iter().enumerate().for_each(|(i, at)| number[*at] = i);
    let dominators = immediate_dominators(next, &order, &number);
    let mut before = vec![Vec::new(); next.len()];
    let mut loops = BTreeMap::<usize, BTreeSet<usize>>::new();
    for &at in &order {
        for &to in next[at].iter().filter(|to| **to < next.len()) {
            before[to].push(at);
        }
    }
    for &at in &order {
        let goes_back = |head: &&usize| **head < next.len() && number[**head] <= number[at];
        for &head in next[at].iter().filter(goes_back).filter(|head| dominates(&dominators, **head, at)) {
            let body = loops.entry(head).or_insert_with(|| BTreeSet::from([head]));
            let mut open = vec![at];
            while let Some(node) = open.pop() {
                if body.insert(node) {
                    open.extend(&before[node]);
                }
            }
        }
    }
    let own = |(head, body): (&usize, &BTreeSet<usize>)| {
        let inner: Vec<&BTreeSet<usize>> =
            loops.iter().filter(|(other, _)| *other != head && body.contains(other)).map(|(_, inner)| inner).collect();
        body.iter().copied().filter(|at| !inner.iter().any(|inner| inner.contains(at))).collect()
    };
    loops.iter().map(own).collect()
}

/// The instructions that can be reached, each before those that follow it but for jumps back.
fn reverse_postorder(next: &[Vec<usize>]) -> Vec<usize> {
    let (mut seen, mut order) = (vec![false; next.len()], Vec::new());
    let mut open = vec![(0, 0)];
    seen[0] = true;
    while let Some((at, tried)) = open.pop() {
        let Some(&to) = next[at].get(tried) else {
            order.push(at);
            continue;
        };
        open.push((at, tried + 1));
        if to < next.len() && !seen[to] {
            seen[to] = true;
            open.push((to, 0));
        }
    }
    order.reverse();
    order
}

/// The nearest instruction that is on every way from the entry; `None` where there is no way.
fn immediate_dominators(next: &[Vec<usize>], order: &[usize], number: &[usize]) -> Vec<Option<usize>> {
    let mut dominators = vec![None; next.len()];
    dominators[0] = Some(0);
    loop {
        let mut has_changed = false;
        for &at in order {
            for &to in next[at].iter().filter(|to| **to < next.len() && **to != 0) {
                let meet = match dominators[to] {
                    None => at,
                    Some(known) => {
                        let (mut a, mut b) = (known, at);
                        while a != b {
                            let lower = if number[a] > number[b] { &mut a } else { &mut b };
                            *lower = dominators[*lower].unwrap_or(0);
                        }
                        a
                    }
                };
                has_changed |= dominators[to].replace(meet) != Some(meet);
            }
        }
        if !has_changed {
            return dominators;
        }
    }
}

fn dominates(dominators: &[Option<usize>], head: usize, mut at: usize) -> bool {
    loop {
        match dominators.get(at).copied().flatten() {
            _ if at == head => return true,
            Some(above) if above != at => at = above,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_inside_are_not_the_own_of_those_around() {
        // 0 -> 1 -> 2 -> 2 | 3 -> 1 | 4, and a way around 3.
        let next = [vec![1], vec![2], vec![2, 3], vec![1, 4], vec![]];
        assert_eq!(own_instructions(&next), [vec![1, 3], vec![2]]);
        // A jump to code that is entered in its middle closes no loop.
        let next = [vec![1, 2], vec![2], vec![3], vec![1, 4], vec![]];
        assert!(own_instructions(&next).is_empty());
        assert!(own_instructions(&[vec![1], vec![7]]).is_empty());
    }

    #[test]
    fn two_jumps_to_one_head_are_one_loop() {
        let next = [vec![1], vec![0, 2], vec![0, 3], vec![]];
        assert_eq!(own_instructions(&next), [vec![0, 1, 2]]);
    }
}
