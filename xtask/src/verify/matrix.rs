//! The outcome of verify at a glance: operators by devices and types.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use gelora_kernels::verify::Case;
use gelora_kernels::{DType, DeviceKind};

/// Numbers of cases.
#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Counts by operator, device and type of the weights, tables or points.
#[derive(Default)]
pub struct Matrix(BTreeMap<&'static str, BTreeMap<String, Counts>>);

impl Matrix {
    pub fn add(&mut self, case: &Case, device: DeviceKind, verdict: &str) {
        let counts = self.0.entry(case.op).or_default().entry(column(device, case.dtype)).or_default();
        match verdict {
            "passed" => counts.passed += 1,
            "skipped" => counts.skipped += 1,
            _ => counts.failed += 1,
        }
    }

    /// A row an operator, a column for each device and type that came up.
    pub fn table(&self) -> String {
        let columns: BTreeSet<&String> = self.0.values().flat_map(BTreeMap::keys).collect();
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([&"cases passed".to_string()].into_iter().chain(columns.iter().copied()));
        for (op, row) in &self.0 {
            let cell = |column: &&String| row.get(*column).map_or(String::new(), Counts::to_string);
            table.add_row([op.to_string()].into_iter().chain(columns.iter().map(cell)));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Counts { failed: 1.., .. } => write!(f, "{} FAILED of {}", self.failed, self.failed + self.passed),
            Counts { passed: 0, skipped, .. } => write!(f, "{skipped} skipped"),
            Counts { passed, skipped: 0, .. } => write!(f, "{passed}"),
            Counts { passed, skipped, .. } => write!(f, "{passed}, {skipped} skipped"),
        }
    }
}

fn column(device: DeviceKind, dtype: DType) -> String {
    format!("{device} {dtype}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_seen_among_those_that_passed() {
        let mut matrix = Matrix::default();
        let case = Case::new("linear", "1");
        for verdict in ["passed", "FAILED", "skipped"] {
            matrix.add(&case, DeviceKind::Wgpu, verdict);
        }
        matrix.add(&case, DeviceKind::Cpu, "passed");
        let table = matrix.table();
        assert!(table.contains("1 FAILED of 2") && table.contains("wgpu f32"), "{table}");
    }
}
