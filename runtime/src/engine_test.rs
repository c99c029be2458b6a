//! What is planned for machines of all sizes.

use super::*;

fn machine(address_bits: u32, memory_mib: u64) -> Machine {
    Machine {
        address_bits,
        address_bytes_max: None,
        page_bytes: 4096,
        memory_bytes: memory_mib << 20,
        cores: 4,
        executor: Executor::Native,
    }
}

#[test]
fn a_raspberry_pi_kernel_with_39_bits_still_gets_a_pool() {
    let plan = Plan::new(machine(39, 1024));
    assert_eq!(plan.class, CodeClass::Dense);
    assert_eq!(plan.allocator, Allocator::Pooling { slots: 1023 });
    assert_eq!(plan.memory_bytes_max, 256 << 20);
}

/// Address bits, MiB of memory, expected slots, MiB that one memory can grow to.
const SIZES: [(u32, u64, u32, usize); 12] = [
    (39, 512, 1023, 256),
    (39, 1 << 10, 1023, 256),
    (39, 4 << 10, 1023, 256),
    (39, 24 << 10, 1023, 256),
    (47, 512, 1024, 512),
    (47, 1 << 10, 2048, 1 << 10),
    (47, 4 << 10, 4096, 4 << 10),
    (47, 24 << 10, 4096, 4 << 10),
    (48, 512, 1024, 512),
    (48, 1 << 10, 2048, 1 << 10),
    (48, 4 << 10, 4096, 4 << 10),
    (48, 24 << 10, 4096, 4 << 10),
];

#[test]
fn every_machine_gets_a_pool_that_fits_and_hears_why() {
    for (bits, memory_mib, slots, grows_to_mib) in SIZES {
        for page_bytes in [4 << 10, 16 << 10] {
            let plan = Plan::new(Machine { page_bytes, ..machine(bits, memory_mib) });
            assert_eq!(plan.allocator, Allocator::Pooling { slots }, "{plan}");
            assert_eq!(plan.memory_bytes_max >> 20, grows_to_mib, "{plan}");
            let each = plan.class.reservation_bytes() + plan.class.guard_bytes();
            assert!(u64::from(slots) * each <= 1 << (bits - 1), "{plan}");
            let page = u64::try_from(page_bytes).unwrap();
            assert_eq!(each % page, 0, "slots begin at pages");
            assert_eq!(plan.memory_bytes_max % page_bytes, 0, "{plan}");
            let reasons = plan.reasons().join("\n");
            let has_checks = bits < WIDE_BITS_MIN;
            assert_eq!(reasons.contains("with bounds checks"), has_checks, "{reasons}");
            let why = if bits == 39 { "half of the addresses" } else { "two for each MiB" };
            assert!(reasons.contains(why), "{reasons}");
        }
    }
}

/// Addresses that this process has reserved, in bytes.
fn reserved_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages * u64::try_from(rustix::param::page_size()).unwrap()
}

/// Engines with pools reserve terabytes: one at a time, so that they can be measured.
static ONE_POOL: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

#[test]
fn a_pool_really_fits_a_short_address_space() {
    let _one = ONE_POOL.lock();
    let before = reserved_bytes();
    let (_engine, plan) = Plan::new(machine(39, 4 << 10)).engine().unwrap();
    let reserved = reserved_bytes() - before;
    assert!(matches!(plan.allocator, Allocator::Pooling { slots: 1023 }), "{plan}");
    assert!(reserved < 3 << 37, "{} GiB of 512 GiB", reserved >> 30);
}

#[test]
fn a_pool_that_the_kernel_cut_down_says_so() {
    let plan = Plan { slots_wanted: Some(4096), ..Plan::new(machine(47, 512)) };
    let text = plan.to_string();
    assert!(text.contains("(instead of 4096: the kernel refused"), "{text}");
    assert!(plan.reasons().join("\n").contains("refused a larger"), "{:?}", plan.reasons());
    assert_eq!(Plan::new(machine(47, 512)).instances_per_container_max(), 256);
}

#[test]
fn compiled_code_does_not_depend_on_memory_or_page_size() {
    for bits in [39, 47, 48] {
        let hash = |memory_mib, page_bytes| {
            let plan = Plan::new(Machine { page_bytes, ..machine(bits, memory_mib) });
            compatibility_hash(&plan.compiler().unwrap())
        };
        assert_eq!(hash(512, 4 << 10), hash(24 << 10, 16 << 10), "{bits}");
    }
}

#[test]
fn a_large_machine_needs_no_bounds_checks() {
    let plan = Plan::new(machine(47, 1024));
    assert_eq!(plan.class, CodeClass::Wide);
    assert_eq!(plan.allocator, Allocator::Pooling { slots: 2048 });
    assert_eq!(plan.memory_bytes_max, 1024 << 20);
}

#[test]
fn a_limited_address_space_falls_back_and_says_why() {
    let mut small = machine(47, 1024);
    small.address_bytes_max = Some(8 << 30);
    let plan = Plan::new(small);
    assert!(matches!(plan.allocator, Allocator::OnDemand { .. }));
    assert!(plan.to_string().contains("no pool (the limit of the address space"), "{plan}");
}

#[test]
fn this_machine_gets_an_engine_and_a_compiler() {
    let plan = Plan::new(Machine::probe()).tried().unwrap();
    plan.try_compiler().unwrap();
    assert!(plan.reservation_bytes() > plan.guard_bytes());
}

#[test]
fn a_machine_without_a_code_generator_is_interpreted_and_hears_so() {
    let _one = ONE_POOL.lock();
    for bits in [32, 39, 47] {
        let plan = Plan::new(machine(bits, 1024).interpreted());
        plan.try_executor().unwrap();
        let compiler = plan.compiler().unwrap();
        let (engine, plan) = plan.engine().unwrap();
        assert!(engine.is_pulley() && compiler.is_pulley());
        assert_eq!(compatibility_hash(&compiler), compatibility_hash(&engine));
        let native = Plan::new(machine(bits, 1024)).compiler().unwrap();
        assert_ne!(compatibility_hash(&native), compatibility_hash(&engine));
        assert!(plan.to_string().contains("interpreted by Pulley"), "{plan}");
        assert!(plan.reasons().join("\n").contains("Pulley"), "{:?}", plan.reasons());
    }
}

#[test]
fn code_for_another_machines_interpreter_can_be_made_but_not_run() {
    let machine = Machine { executor: Executor::Pulley32, ..machine(32, 512) };
    let plan = Plan::new(machine);
    assert_eq!((plan.class, plan.guard_bytes()), (CodeClass::Tiny, 0));
    plan.try_compiler().unwrap();
    assert_eq!(plan.try_executor().is_ok(), cfg!(target_pointer_width = "32"));
}

#[test]
fn compiling_and_running_agree_on_the_hash() {
    let plan = Plan::new(Machine::probe());
    let compiler = plan.compiler().unwrap();
    let _one = ONE_POOL.lock();
    let (engine, _) = plan.engine().unwrap();
    assert_eq!(compatibility_hash(&compiler), compatibility_hash(&engine));
    assert_eq!(compatibility_hash(&engine).len(), 64);
}
