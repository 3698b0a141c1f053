//! The committed table of what kernel instances take of the machine, and what becomes worse.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Counts;

/// The registers that an instance may gain before it is reported: the compiler allocates them in steps of 8.
const SLACK: u32 = 7;

/// What one variant of a kernel instance takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// [`checksum`] of the machine code: equal code needs no second look.
    pub checksum: u32,
    pub registers: u32,
    /// Bytes that a thread spills to local memory.
    pub spills: u32,
    /// Bytes of shared memory of a cube.
    pub shared: u32,
    pub counts: Counts,
}

/// Variants of an instance: its statements in several orders, of which CubeCL chooses one by chance.
pub type Variants = Vec<Instance>;

/// 32-bit FNV-1a.
pub fn checksum(code: &[u8]) -> u32 {
    code.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl Instance {
    fn to_row(self) -> [u32; 12] {
        let Self { checksum, registers, spills, shared, counts } = self;
        let Counts { length, hmma, ldsm, ldg128, ldgsts, sts, ffma, barriers } = counts;
        [registers, spills, shared, length, hmma, ldsm, ldg128, ldgsts, sts, ffma, barriers, checksum]
    }

    fn of_row(row: [u32; 12]) -> Self {
        let [registers, spills, shared, length, hmma, ldsm, ldg128, ldgsts, sts, ffma, barriers, checksum] = row;
        let counts = Counts { length, hmma, ldsm, ldg128, ldgsts, sts, ffma, barriers };
        Self { checksum, registers, spills, shared, counts }
    }

    /// The worst of both in every number.
    fn or_worse(self, other: Self) -> Self {
        let (a, b) = (self.counts, other.counts);
        let counts = Counts {
            length: a.length.min(b.length),
            hmma: a.hmma.min(b.hmma),
            ldsm: a.ldsm.min(b.ldsm),
            ldg128: a.ldg128.min(b.ldg128),
            ldgsts: a.ldgsts.min(b.ldgsts),
            sts: a.sts.max(b.sts),
            ffma: a.ffma.min(b.ffma),
            barriers: a.barriers.max(b.barriers),
        };
        Self {
            checksum: 0,
            registers: self.registers.max(other.registers),
            spills: self.spills.max(other.spills),
            shared: self.shared.max(other.shared),
            counts,
        }
    }

    /// What is worse than before.
    fn worse_than(&self, before: &Self) -> Vec<String> {
        let (now, then) = (&self.counts, &before.counts);
        let more = [
            ("registers", self.registers, before.registers, SLACK),
            ("spilled bytes", self.spills, before.spills, 0),
            ("bytes of shared memory", self.shared, before.shared, 0),
            ("barriers in the main loop", now.barriers, then.barriers, 0),
        ];
        let fewer = [
            ("HMMA in the main loop", now.hmma, then.hmma),
            ("LDSM in the main loop", now.ldsm, then.ldsm),
            ("LDG.128 in the main loop", now.ldg128, then.ldg128),
            ("LDGSTS in the main loop", now.ldgsts, then.ldgsts),
            ("FFMA in the main loop", now.ffma, then.ffma),
        ];
        let more = more.into_iter().filter(|(_, now, then, slack)| *now > then + slack);
        if now.length == 0 && then.length > 0 {
            return vec!["no main loop any more".into()];
        }
        // Without a main loop the counts are those of the whole kernel, where fewer instructions are no worse.
        let both_loop = now.length > 0 && then.length > 0;
        let fewer = fewer.into_iter().filter(|(_, now, then)| both_loop && now < then);
        let text = |what: &str, now: u32, then: u32| format!("{now} {what} instead of {then}");
        more.map(|(what, now, then, _)| text(what, now, then)).chain(fewer.map(|(w, n, t)| text(w, n, t))).collect()
    }
}

/// One line of the file: the instances of a kernel on an architecture, by the hash of their settings.
#[derive(Serialize, Deserialize)]
struct Line {
    kernel: String,
    sm: u32,
    /// Of every variant: registers, spills, shared memory, the counts of the main loop in the order of [`Counts`], and
    /// the checksum.
    instances: BTreeMap<String, Vec<[u32; 12]>>,
}

/// Instances by kernel, architecture, and hash of their settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(pub BTreeMap<(String, u32), BTreeMap<String, Variants>>);

impl Table {
    /// Reads the file: a JSON object on each line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let line = |(number, line): (usize, &str)| {
            let Line { kernel, sm, instances } =
                serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            let variants = |rows: Vec<_>| rows.into_iter().map(Instance::of_row).collect();
            let instances = instances.into_iter().map(|(hash, rows)| (hash, variants(rows))).collect();
            Ok(((kernel, sm), instances))
        };
        Ok(Self(text.lines().enumerate().map(line).collect::<Result<_>>()?))
    }

    /// The counts of an instance, if its machine code is that of a variant in the table.
    pub fn known(&self, kernel: &str, sm: u32, instance: &str, code: &[u8]) -> Option<Counts> {
        let (variants, checksum) = (self.0.get(&(kernel.to_owned(), sm))?.get(instance)?, checksum(code));
        variants.iter().find(|variant| variant.checksum == checksum).map(|variant| variant.counts)
    }

    /// The text of the file.
    pub fn text(&self) -> Result<String> {
        let line = |((kernel, sm), instances): (&(String, u32), &BTreeMap<String, Variants>)| {
            let rows = |variants: &Variants| variants.iter().map(|variant| variant.to_row()).collect();
            let instances = instances.iter().map(|(hash, variants)| (hash.clone(), rows(variants))).collect();
            Ok(serde_json::to_string(&Line { kernel: kernel.clone(), sm: *sm, instances })? + "\n")
        };
        self.0.iter().map(line).collect()
    }

    /// What is worse than in the committed table: instances whose best variant is worse than the worst one there. With
    /// `whole`, instances that either table lacks are reported too.
    pub fn compare(&self, committed: &Self, whole: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let none = BTreeMap::new();
        for ((kernel, sm), instances) in &self.0 {
            let before = committed.0.get(&(kernel.clone(), *sm)).unwrap_or(&none);
            for (hash, variants) in instances {
                match before.get(hash).and_then(|then| then.iter().copied().reduce(Instance::or_worse)) {
                    Some(then) => {
                        let best = variants.iter().map(|variant| variant.worse_than(&then)).min_by_key(Vec::len);
                        let worse = best.into_iter().flatten();
                        problems.extend(worse.map(|what| format!("{kernel} sm_{sm} {hash}: {what}")));
                    }
                    None if whole => problems.push(format!("{kernel} sm_{sm} {hash}: is not in the table")),
                    None => {}
                }
            }
        }
        if whole {
            for ((kernel, sm), instances) in &committed.0 {
                let now = self.0.get(&(kernel.clone(), *sm)).unwrap_or(&none);
                let gone = instances.keys().filter(|hash| !now.contains_key(*hash));
                problems
                    .extend(gone.map(|hash| format!("{kernel} sm_{sm} {hash}: is in the table and compiled no more")));
            }
        }
        problems
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.text()?).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, [u32; 12])]) -> Table {
        let mut instances = BTreeMap::<String, Variants>::new();
        for (hash, row) in rows {
            instances.entry(hash.to_string()).or_default().push(Instance::of_row(*row));
        }
        Table(BTreeMap::from([(("gpu::k".to_owned(), 90), instances)]))
    }

    const ROW: [u32; 12] = [128, 0, 49_152, 200, 64, 16, 4, 8, 2, 0, 1, 7];

    #[test]
    fn the_file_holds_the_table() -> Result<()> {
        let table = table(&[("aa", ROW), ("bb", [1; 12])]);
        let text = table.text()?;
        assert_eq!(text.lines().count(), 1);
        assert_eq!(Table::parse(&text)?, table);
        assert_eq!(checksum(b"foobar"), 0xbf9c_f968);
        let mut known = table.clone();
        let row = |checksum| {
            let mut row = ROW;
            row[11] = checksum;
            Instance::of_row(row)
        };
        known.0.insert(
            ("gpu::k".to_owned(), 90),
            BTreeMap::from([("aa".to_owned(), vec![row(1), row(checksum(b"code"))])]),
        );
        assert_eq!(known.known("gpu::k", 90, "aa", b"code"), Some(row(0).counts));
        assert_eq!(known.known("gpu::k", 90, "aa", b"other code"), None);
        assert_eq!(known.known("gpu::k", 80, "aa", b"code"), None);
        assert!(Table::parse("{}").is_err_and(|e| e.to_string().contains("line 1")));
        Ok(())
    }

    #[test]
    fn what_is_worse_is_reported() {
        let committed = table(&[("aa", ROW)]);
        let compare = |change: &dyn Fn(&mut [u32; 12])| {
            let mut row = ROW;
            change(&mut row);
            table(&[("aa", row)]).compare(&committed, true)
        };
        assert!(compare(&|_| {}).is_empty() && compare(&|row| row[0] = 135).is_empty());
        for (index, value, what) in [
            (0, 136, "136 registers instead of 128"),
            (1, 4, "4 spilled bytes instead of 0"),
            (2, 50_000, "bytes of shared memory"),
            (4, 32, "32 HMMA in the main loop instead of 64"),
            (5, 15, "LDSM"),
            (6, 0, "LDG.128"),
            (7, 0, "LDGSTS"),
            (10, 2, "2 barriers"),
            (3, 0, "no main loop"),
        ] {
            let problems = compare(&|row| row[index] = value);
            assert!(problems.len() == 1 && problems[0].contains(what), "{problems:?}");
        }
        let mut whole_kernel = ROW;
        whole_kernel[3] = 0;
        assert!(
            table(&[("aa", {
                let mut row = whole_kernel;
                row[4] = 1;
                row
            })])
            .compare(&table(&[("aa", whole_kernel)]), true)
            .is_empty()
        );
        // Improvements are none.
        assert!(compare(&|row| (row[0], row[4], row[10]) = (100, 70, 0)).is_empty());
        let other = table(&[("bb", ROW)]);
        let problems = other.compare(&committed, true);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(other.compare(&committed, false).is_empty());
    }

    /// Which order of statements a run meets is chance: the best that it met counts, against the worst that was known.
    #[test]
    fn one_variant_that_is_no_worse_is_enough() {
        let with = |index: usize, value: u32| {
            let mut row = ROW;
            row[index] = value;
            ("aa", row)
        };
        let (fine, spilling, narrow) = (("aa", ROW), with(1, 16), with(6, 2));
        let problems = |now: &[_], then: &[_]| table(now).compare(&table(then), true);
        assert!(problems(&[spilling, fine], &[fine]).is_empty());
        assert!(problems(&[spilling], &[fine, spilling]).is_empty());
        assert!(problems(&[with(1, 20)], &[fine, spilling]).concat().contains("20 spilled bytes instead of 16"));
        // Two that are worse are reported as the one of which there is less to say.
        let both = ("aa", [136, 16, 49_152, 200, 32, 16, 4, 8, 2, 0, 1, 7]);
        assert_eq!(problems(&[both, narrow], &[fine]).len(), 1);
    }
}
