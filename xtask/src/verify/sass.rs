//! Machine code of CUDA kernels, as nvdisasm prints it: the main loop of a kernel, and the instructions in it.

mod loops;
#[cfg_attr(not(feature = "cuda-compile"), allow(dead_code))] // the tests use a part of it
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[cfg(feature = "cuda-compile")]
pub use table::{Instance, Table, checksum};

/// Counts of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Instructions of the main loop; 0 if the kernel has no loop, and the counts are those of the whole kernel.
    pub length: u32,
    /// Products of matrix units.
    pub hmma: u32,
    /// Loads of fragments from shared memory (ldmatrix).
    pub ldsm: u32,
    /// Loads of 16 bytes from global memory.
    pub ldg128: u32,
    /// Asynchronous copies from global to shared memory.
    pub ldgsts: u32,
    /// Stores to shared memory.
    pub sts: u32,
    /// Multiply-adds in f32.
    pub ffma: u32,
    /// Barriers of a cube.
    pub barriers: u32,
}

impl Counts {
    fn of<'a>(opcodes: impl Iterator<Item = &'a str>) -> Self {
        let mut counts = Self::default();
        for opcode in opcodes {
            let (name, suffixes) = opcode.split_once('.').unwrap_or((opcode, ""));
            match name {
                "HMMA" => counts.hmma += 1,
                "LDSM" => counts.ldsm += 1,
                "LDG" if suffixes.split('.').any(|suffix| suffix == "128") => counts.ldg128 += 1,
                "LDGSTS" => counts.ldgsts += 1,
                "STS" => counts.sts += 1,
                "FFMA" => counts.ffma += 1,
                "BAR" if suffixes.starts_with("SYNC") => counts.barriers += 1,
                _ => {}
            }
        }
        counts
    }

    /// The work by which loops are compared: products of matrix units, then multiply-adds.
    fn work(&self) -> (u32, u32) {
        (self.hmma, self.ffma)
    }
}

/// One instruction.
struct Instruction<'a> {
    opcode: &'a str,
    /// The label that it jumps to.
    target: Option<&'a str>,
    /// Whether the next instruction may follow.
    falls_through: bool,
}

/// The counts of the main loop of a kernel. `None` if the text has no instruction.
///
/// The main loop is the innermost loop with the most HMMA, or, in a kernel without any, with the most FFMA:
/// instructions of a loop inside are not counted for the loop around it. Without a loop that has either, the whole
/// kernel is counted.
pub fn main_loop(text: &str) -> Option<Counts> {
    let (instructions, labels) = parse(text);
    if instructions.is_empty() {
        return None;
    }
    let next = |(at, instruction): (usize, &Instruction<'_>)| {
        let target = instruction.target.and_then(|label| labels.get(label)).copied();
        target.into_iter().chain(instruction.falls_through.then_some(at + 1)).collect()
    };
    let next: Vec<Vec<usize>> = instructions.iter().enumerate().map(next).collect();
    let counts_of = |own: Vec<usize>| Counts {
        length: own.len() as u32,
        ..Counts::of(own.iter().map(|at| instructions[*at].opcode))
    };
    let main = loops::own_instructions(&next).into_iter().map(counts_of).filter(|counts| counts.work() > (0, 0));
    let whole = || Counts::of(instructions.iter().map(|instruction| instruction.opcode));
    Some(main.reduce(|best, counts| if counts.work() > best.work() { counts } else { best }).unwrap_or_else(whole))
}

/// The instructions of a text, and the index of the first instruction after each label.
fn parse(text: &str) -> (Vec<Instruction<'_>>, BTreeMap<&str, usize>) {
    let (mut instructions, mut labels) = (Vec::new(), BTreeMap::new());
    for line in text.lines().map(str::trim) {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, instructions.len());
            continue;
        }
        // `/*0040*/   @!P0 BRA `(.L_x_0) ;`
        let Some((address, code)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else { continue };
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit()) {
            continue;
        }
        let code = code.trim();
        let has_predicate = code.starts_with('@');
        let code = if has_predicate { code.split_once(' ').map_or("", |(_, rest)| rest.trim()) } else { code };
        let (opcode, operands) = code.split_once([' ', ';']).unwrap_or((code, ""));
        if opcode.is_empty() {
            continue;
        }
        let name = opcode.split('.').next().unwrap_or(opcode);
        let target = code.split_once("`(").and_then(|(_, rest)| rest.split_once(')')).map(|(label, _)| label);
        // A branch may have its condition as an operand: `BRA.DIV UR4, `(.L_x_5)`.
        let always = !has_predicate && (name != "BRA" || operands.trim_start().starts_with('`'));
        let falls_through = !(always && matches!(name, "BRA" | "EXIT" | "RET" | "BRX" | "JMP"));
        instructions.push(Instruction { opcode, target: target.filter(|_| name == "BRA"), falls_through });
    }
    (instructions, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_loop_of_a_kernel_with_shared_memory() {
        let counts = main_loop(include_str!("sass/sample_sm90.txt")).expect("instructions");
        assert_eq!(counts, Counts { length: 57, sts: 1, ffma: 32, barriers: 2, ..Counts::default() });
        let counts = main_loop(include_str!("sass/sample_sm80.txt")).expect("instructions");
        assert_eq!((counts.sts, counts.ffma, counts.barriers), (1, 32, 2));
    }

    #[test]
    fn the_innermost_loop_with_most_products_counts() {
        let text = "\
k:
.text.k:
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR6][R4.64] ;
        /*0020*/                   FFMA R1, R2, R3, R4 ;
.L_x_1:
        /*0030*/                   LDSM.16.M88.4 R4, [R3] ;
        /*0040*/                   LDG.E.128 R4, desc[UR6][R4.64] ;
        /*0050*/                   LDG.E.64 R4, desc[UR6][R4.64] ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0070*/                   HFMA2.MMA R21, -RZ, RZ, 0, 0 ;
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0090*/              @!P0 BRA `(.L_x_1) ;
        /*00a0*/              @UP1 BRA.U `(.L_x_0) ;
        /*00b0*/                   EXIT ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2);
";
        let wanted = Counts { length: 7, hmma: 1, ldsm: 1, ldg128: 1, barriers: 1, ..Counts::default() };
        assert_eq!(main_loop(text), Some(wanted));
        // Without matrix units, the loop around has more multiply-adds of its own.
        let without = text.replace("HMMA.16816", "NOP");
        assert_eq!(main_loop(&without), Some(Counts { length: 3, ldgsts: 1, ffma: 1, ..Counts::default() }));
        // Without a loop that computes, the whole kernel counts.
        let without = without.replace("FFMA", "FADD");
        assert_eq!(main_loop(&without).map(|counts| (counts.length, counts.ldg128, counts.ldgsts)), Some((0, 2, 1)));
        assert_eq!(main_loop("nothing"), None);
    }

    /// Warps that diverged take code after the end of the kernel, which jumps back to where they join: no loop.
    #[test]
    fn code_that_is_entered_from_above_is_no_loop() {
        let text = "\
.L_x_0:
        /*0000*/                   FFMA R1, R2, R3, R4 ;
        /*0010*/                   BRA.DIV UR4, `(.L_x_2) ;
.L_x_1:
        /*0020*/              @!P0 BRA `(.L_x_0) ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/                   EXIT ;
.L_x_2:
        /*0050*/                   NOP ;
        /*0060*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
";
        // The detour is a part of the loop that it leaves and enters, and HMMA is in none.
        assert_eq!(main_loop(text), Some(Counts { length: 5, ffma: 1, ..Counts::default() }));
    }
}
