//! What the machine says of itself.

/// The processor's name, or its architecture where it has none to give.
pub(crate) fn name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    match model {
        Some((_, name)) => name.trim().to_owned(),
        None => std::env::consts::ARCH.to_owned(),
    }
}

/// Whether the processor is one of Intel, by its own account.
pub(crate) fn is_intel() -> bool {
    is_of(b"GenuineIntel")
}

/// Whether the processor is one of AMD.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) fn is_amd() -> bool {
    is_of(b"AuthenticAMD")
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn is_of(maker: &[u8; 12]) -> bool {
    // Where the machine is virtual the instruction is a call to its host.
    static MAKER: std::sync::OnceLock<[[u8; 4]; 3]> = std::sync::OnceLock::new();
    let of_leaf = || {
        let leaf = crate::amx::cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes)
    };
    MAKER.get_or_init(of_leaf).as_flattened() == maker
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn is_of(_: &[u8; 12]) -> bool {
    false
}
