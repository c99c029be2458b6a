//! What the machine offers: address space, page size, memory, cores.

use std::fmt;
use std::fs;

/// Address bits assumed when the kernel does not tell: the smallest of common 64-bit kernels.
const ADDRESS_BITS_FALLBACK: u32 = if cfg!(target_pointer_width = "64") { 39 } else { 32 };
/// Where the kernel lists this process' mappings.
const MAPS: &str = "/proc/self/maps";
/// Memory limit of the control group this process is in, if its hierarchy is mounted here.
const CGROUP_MEMORY_MAX: &str = "/sys/fs/cgroup/memory.max";

/// What runs compiled code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// The processor.
    Native,
    /// Pulley, wasmtime's interpreter, on a machine whose pointers have 32 bits.
    Pulley32,
    /// The same with 64 bits.
    Pulley64,
}

impl Executor {
    /// The interpreter for this machine.
    #[must_use]
    pub fn pulley() -> Self {
        if cfg!(target_pointer_width = "32") { Self::Pulley32 } else { Self::Pulley64 }
    }

    /// Native code, where wasmtime can make it.
    fn of_this_machine() -> Self {
        let has_code_generator = cfg!(any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            target_arch = "riscv64",
            target_arch = "s390x"
        ));
        if has_code_generator { Self::Native } else { Self::pulley() }
    }

    /// What wasmtime calls it; `None` for native code, which is what it makes by itself.
    pub(crate) fn target(self) -> Option<&'static str> {
        match self {
            Self::Native => None,
            Self::Pulley32 => Some("pulley32"),
            Self::Pulley64 => Some("pulley64"),
        }
    }
}

/// Facts about the machine that size the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Usable bits of a user-space address: 47 on most x86-64, 39 on many Raspberry Pi kernels.
    pub address_bits: u32,
    /// Limit of the process' address space in bytes (`RLIMIT_AS`), if there is one.
    pub address_bytes_max: Option<u64>,
    /// Size of a page in bytes.
    pub page_bytes: usize,
    /// Memory this process may use, in bytes: of the machine or of its control group.
    pub memory_bytes: u64,
    /// Cores this process may use.
    pub cores: usize,
    /// What runs compiled code here.
    pub executor: Executor,
}

impl Machine {
    /// Asks the kernel. What it does not tell is assumed small.
    #[must_use]
    pub fn probe() -> Self {
        let maps = fs::read_to_string(MAPS).unwrap_or_default();
        let system = rustix::system::sysinfo();
        #[allow(
            clippy::useless_conversion,
            reason = "the field is 32 bits wide on 32-bit machines"
        )]
        let total = u64::from(system.totalram).saturating_mul(u64::from(system.mem_unit));
        let group = fs::read_to_string(CGROUP_MEMORY_MAX)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        Self {
            address_bits: address_bits(&maps).unwrap_or(ADDRESS_BITS_FALLBACK),
            address_bytes_max: rustix::process::getrlimit(rustix::process::Resource::As).current,
            page_bytes: rustix::param::page_size(),
            memory_bytes: group.map_or(total, |group| group.min(total)),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            executor: Executor::of_this_machine(),
        }
    }
}

impl Machine {
    /// The same machine with addresses of at most `bits`: what is planned for it fits a smaller one.
    #[must_use]
    pub fn with_address_bits_max(self, bits: Option<u32>) -> Self {
        Self {
            address_bits: bits.map_or(self.address_bits, |bits| bits.min(self.address_bits)),
            ..self
        }
    }

    /// The same machine as if no native code could be made for it.
    #[must_use]
    pub fn interpreted(self) -> Self {
        Self { executor: Executor::pulley(), ..self }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores, {} MiB memory, {}-bit addresses, {} KiB pages",
            self.cores,
            self.memory_bytes >> 20,
            self.address_bits,
            self.page_bytes >> 10
        )
    }
}

/// The kernel puts a process' stack just below the end of its address space, so the highest
/// mapping tells the number of address bits without trying any reservation.
fn address_bits(maps: &str) -> Option<u32> {
    maps.lines()
        .filter(|line| !line.ends_with("[vsyscall]"))
        .filter_map(|line| line.split_once('-')?.1.split_once(' '))
        .filter_map(|(end, _)| u64::from_str_radix(end, 16).ok())
        .max()
        .map(|end| u64::BITS - end.saturating_sub(1).leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_mapping_tells_the_address_bits() {
        let x86 = "7ffd1c000000-7ffd1c021000 rw-p 00000000 00:00 0 [stack]\n\
                   ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]";
        let pi4 = "5555550000-5555560000 r-xp 00000000 b3:02 1 /bin/cat\n\
                   7fffe00000-7fffe21000 rw-p 00000000 00:00 0 [stack]";
        assert_eq!(address_bits(x86), Some(47));
        assert_eq!(address_bits(pi4), Some(39));
        assert_eq!(address_bits(""), None);
    }

    #[test]
    fn addresses_can_be_cut_but_not_stretched() {
        let machine = Machine { address_bits: 47, ..Machine::probe() };
        assert_eq!(machine.with_address_bits_max(Some(39)).address_bits, 39);
        assert_eq!(machine.with_address_bits_max(Some(64)), machine);
        assert_eq!(machine.with_address_bits_max(None), machine);
    }

    #[test]
    fn this_machine_answers() {
        let machine = Machine::probe();
        assert!(machine.address_bits >= 31 && machine.address_bits <= 57, "{machine}");
        assert!(machine.page_bytes >= 4096 && machine.memory_bytes > 0 && machine.cores > 0);
    }
}
