//! The kernel sources, embedded: a program needs no file beside it, and none of the toolkit's.

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../kernels/", $name)))),*]
    };
}

/// Kernels, each one compilation unit.
const KERNELS: &[(&str, &str)] = embedded![
    "append.cu",
    "combine.cu",
    "merge.cu",
    "naive.cu",
    "schedule.cu",
    "separate_heads_sm90.cu",
    "separate_sm80.cu",
    "tied_heads_sm90.cu",
    "tied_sm80.cu",
    "tied_sm90.cu",
    "tied_wide_sm90.cu",
];

/// What kernels include, by the names they use.
pub(crate) const HEADERS: &[(&str, &str)] = embedded![
    "abi.cuh",
    "abi_portable.cuh",
    "ptx/barrier.cuh",
    "ptx/control.cuh",
    "ptx/convert.cuh",
    "ptx/copy.cuh",
    "ptx/copy_groups.cuh",
    "ptx/global.cuh",
    "ptx/mma.cuh",
    "ptx/number.cuh",
    "ptx/shared.cuh",
    "ptx/wgmma.cuh",
    "tile/attend_heads_sm90.cuh",
    "tile/attend_sm80.cuh",
    "tile/block.cuh",
    "tile/element.cuh",
    "tile/item.cuh",
    "tile/load_boxes.cuh",
    "tile/load_rows.cuh",
    "tile/load_units.cuh",
    "tile/mask.cuh",
    "tile/number.cuh",
    "tile/queries.cuh",
    "tile/ring.cuh",
    "tile/softmax.cuh",
    "tile/store.cuh",
    "tile/units.cuh",
    "tile/weight.cuh",
    "tile/weightless.cuh",
];

/// A kernel's source.
pub(crate) fn text(name: &str) -> Option<&'static str> {
    KERNELS.iter().find(|(kernel, _)| *kernel == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn includes(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'))
    }

    #[test]
    fn every_include_is_embedded() {
        for (name, text) in KERNELS.iter().chain(HEADERS) {
            for include in includes(text) {
                let found = HEADERS.iter().any(|(header, _)| *header == include);
                assert!(found, "{name} includes {include}");
            }
        }
    }

    #[test]
    fn nothing_outside_is_included() {
        for (name, text) in KERNELS.iter().chain(HEADERS) {
            assert!(!text.contains("#include <"), "{name} needs a toolkit header");
        }
    }

    /// `asm` is kept where a reader looks for it.
    #[test]
    fn assembly_stands_under_ptx_alone() {
        for (name, text) in KERNELS.iter().chain(HEADERS) {
            let assembly = text.contains("asm volatile(") || text.contains("asm(");
            assert!(!assembly || name.starts_with("ptx/"), "{name} holds assembly");
        }
    }
}
