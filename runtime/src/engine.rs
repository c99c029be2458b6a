//! The one place that configures wasmtime, for compiling and for running.
//!
//! # Invariants
//!
//! - What decides the shape of compiled code ([`CodeClass`]) depends on nothing but the address
//!   bits, so machines of one kind share compiled code whatever their memory.
//! - A change of allocator never goes unsaid: [`Plan`] carries the reason and prints it.

use std::fmt;

use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, Module, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::machine::{Executor, Machine};
use crate::types::StartError;

/// Address bits from which each memory may reserve all that a 32-bit guest can address, so that
/// compiled code needs no bounds checks.
const WIDE_BITS_MIN: u32 = 46;
/// Address bits from which a pool of small slots is worth having.
const DENSE_BITS_MIN: u32 = 38;
/// Slots of the pool at most; each costs some hundred bytes of bookkeeping.
const SLOTS_MAX: u64 = 4096;
/// Below this many slots a pool helps nobody.
const SLOTS_MIN: u64 = 64;
/// Guests' call stacks in the pool at most; each costs two kernel mappings.
const STACKS_MAX: u64 = 2048;
/// Size of a guest's call stack, with room for the host functions it calls, in bytes.
const STACK_BYTES: usize = 1 << 20;
/// Part of the stack that Wasm code may use, in bytes.
const WASM_STACK_BYTES: usize = 512 << 10;
/// Elements of one table at most.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 50_000;
/// Core instances that a component may hold; tools split one component into several,
/// and tools that compose put several of those into one.
pub(crate) const CORE_INSTANCES_PER_COMPONENT: u32 = 128;
/// Core instances that the pool counts for each memory: an adapted module has five, what tools
/// compose has more. None is set aside for them, so more of them cost nothing.
const CORE_INSTANCES_PER_SLOT: u32 = 16;
/// Tables and memories that one component may hold.
const TABLES_PER_COMPONENT: u32 = 64;
const MEMORIES_PER_COMPONENT: u32 = 16;
/// Instances that one HTTP container may have: a part of the pool, within bounds.
const INSTANCES_POOL_PART: usize = 4;
const INSTANCES_MIN: usize = 32;
const INSTANCES_MAX: usize = 512;
/// Bytes of one instance's bookkeeping at most.
const INSTANCE_BYTES_MAX: usize = 1 << 20;
/// Warm slots kept for the next instance of the same component.
const WARM_SLOTS_MAX: u32 = 32;
/// Bytes of a slot that are cleared by writing instead of giving the pages back; pays off for
/// instances that live for one request.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// A module with nothing in it.
const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// How memories are laid out in the address space; part of the compiled code's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeClass {
    /// 4 GiB and a large guard for each memory: no bounds checks.
    Wide,
    /// 256 MiB and a small guard for each memory: many fit where addresses are short.
    Dense,
    /// 32-bit machines: small reservations, moved when they grow.
    Tiny,
}

impl CodeClass {
    fn of(machine: &Machine) -> Self {
        match machine.address_bits {
            WIDE_BITS_MIN.. => Self::Wide,
            DENSE_BITS_MIN.. => Self::Dense,
            _ => Self::Tiny,
        }
    }

    fn reservation_bytes(self) -> u64 {
        match self {
            Self::Wide => 4 << 30,
            Self::Dense => 256 << 20,
            Self::Tiny => 8 << 20,
        }
    }

    fn guard_bytes(self) -> u64 {
        match self {
            Self::Wide => 32 << 20,
            Self::Dense | Self::Tiny => 64 << 10,
        }
    }
}

/// Where instances get their memory from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocator {
    /// From slots reserved at start: starting an instance needs no new mapping.
    Pooling {
        /// Memories that can live at the same time.
        slots: u32,
    },
    /// From the kernel, one mapping at a time.
    OnDemand {
        /// Why there is no pool.
        reason: &'static str,
    },
}

/// What was chosen for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What the choice is based on.
    pub machine: Machine,
    /// Layout of memories.
    pub class: CodeClass,
    /// Where they come from.
    pub allocator: Allocator,
    /// Size that one linear memory can grow to, in bytes.
    pub memory_bytes_max: usize,
    /// Memories that the pool should have had, if the kernel granted only fewer.
    pub slots_wanted: Option<u32>,
}

impl Plan {
    /// Chooses for `machine`.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let class = CodeClass::of(&machine);
        let reservation = class.reservation_bytes();
        let memory_bytes_max = match class {
            CodeClass::Tiny => machine.memory_bytes,
            CodeClass::Wide | CodeClass::Dense => reservation.min(machine.memory_bytes),
        } & !0xffff;
        Self {
            machine,
            class,
            allocator: choose_allocator(&machine, class),
            memory_bytes_max: usize::try_from(memory_bytes_max).unwrap_or(usize::MAX),
            slots_wanted: None,
        }
    }

    /// The plan as it comes out when the engine is made, which is then let go: what a node would
    /// run with.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] when not even an engine without a pool can be made.
    pub fn tried(self) -> Result<Self, StartError> {
        self.engine().map(|(_, plan)| plan)
    }

    /// Whether this program can run code in the way that was planned: an interpreter is left out of
    /// programs for machines that run native code.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] with what the engine says.
    pub fn try_executor(&self) -> Result<(), StartError> {
        if self.machine.executor == Executor::Native {
            return Ok(());
        }
        let tried =
            self.compiler().and_then(|engine| Module::new(&engine, EMPTY_MODULE).map(|_| ()));
        tried.map_err(|error| {
            StartError::Host(format!("this program was built without that interpreter: {error:#}"))
        })
    }

    /// Compiles the smallest module: whether this machine can make code for itself.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] with what the compiler says.
    pub fn try_compiler(&self) -> Result<(), StartError> {
        let compiled =
            self.compiler().and_then(|compiler| compiler.precompile_module(EMPTY_MODULE));
        compiled.map(|_| ()).map_err(|error| StartError::Host(format!("cannot compile: {error:#}")))
    }

    /// Address space reserved for each memory, in bytes, without its guard.
    #[must_use]
    pub fn reservation_bytes(&self) -> u64 {
        self.class.reservation_bytes()
    }

    /// Address space behind each memory that is never mapped, in bytes.
    #[must_use]
    pub fn guard_bytes(&self) -> u64 {
        // The interpreter checks every access itself.
        if self.machine.executor == Executor::Native { self.class.guard_bytes() } else { 0 }
    }

    /// Call stacks in a pool of `slots` memories.
    #[must_use]
    pub fn stacks(slots: u32) -> u32 {
        u32::try_from(u64::from(slots).min(STACKS_MAX)).unwrap_or(slots)
    }

    /// Instances that one HTTP container may have at the same time, so that it leaves room for
    /// others.
    pub(crate) fn instances_per_container_max(&self) -> usize {
        match self.allocator {
            Allocator::Pooling { slots } => usize::try_from(slots)
                .map_or(INSTANCES_MAX, |slots| slots / INSTANCES_POOL_PART)
                .clamp(INSTANCES_MIN, INSTANCES_MAX),
            Allocator::OnDemand { .. } => INSTANCES_MAX,
        }
    }

    /// Why it was chosen, one line per choice, for people.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let bits = self.machine.address_bits;
        let memory_mib = self.machine.memory_bytes >> 20;
        let mut reasons = vec![match self.class {
            CodeClass::Wide if self.machine.executor == Executor::Native => {
                format!("{bits}-bit addresses: 4 GiB for each memory, so no bounds checks")
            }
            CodeClass::Wide => format!("{bits}-bit addresses: 4 GiB for each memory"),
            CodeClass::Dense => format!(
                "{bits}-bit addresses: 256 MiB for each memory, with bounds checks, so that many fit"
            ),
            CodeClass::Tiny => format!("{bits}-bit addresses: memories are moved when they grow"),
        }];
        reasons.push(match self.allocator {
            Allocator::OnDemand { reason } => {
                format!("no pool, instances start slower: {reason}")
            }
            Allocator::Pooling { slots } if self.slots_wanted.is_some_and(|it| it > slots) => {
                format!("pool of {slots} memories: the kernel refused a larger reservation")
            }
            Allocator::Pooling { slots } => {
                let limit = if u64::from(slots) == slots_by_memory(&self.machine) {
                    format!("two for each MiB of {memory_mib} MiB, at most {SLOTS_MAX}")
                } else {
                    "half of the addresses".to_owned()
                };
                format!("pool of {slots} memories: {limit}")
            }
        });
        if self.machine.executor != Executor::Native {
            reasons.push("Pulley: code is interpreted, not run by the processor".to_owned());
        }
        if self.memory_bytes_max >> 20 == usize::try_from(memory_mib).unwrap_or(usize::MAX) {
            reasons.push(format!("one memory can grow to {memory_mib} MiB: all there is"));
        } else {
            let mib = self.memory_bytes_max >> 20;
            reasons.push(format!("one memory can grow to {mib} MiB: what is reserved for it"));
        }
        reasons
    }

    /// Makes the engine that runs guests. A pool that does not fit is halved until it does.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] when even an engine without a pool cannot be made.
    pub(crate) fn engine(mut self) -> Result<(Engine, Self), StartError> {
        loop {
            let made = self.config(self.allocator).and_then(|config| Engine::new(&config));
            let error = match made {
                Ok(engine) => return Ok((engine, self)),
                Err(error) => error,
            };
            if let Allocator::Pooling { slots } = self.allocator {
                self.slots_wanted.get_or_insert(slots);
            }
            self.allocator = match self.allocator {
                Allocator::Pooling { slots } if u64::from(slots) >= 2 * SLOTS_MIN => {
                    Allocator::Pooling { slots: slots / 2 }
                }
                Allocator::Pooling { .. } => {
                    Allocator::OnDemand { reason: "the kernel refused the reservation" }
                }
                Allocator::OnDemand { .. } => {
                    return Err(StartError::Host(format!("cannot make the engine: {error:#}")));
                }
            };
        }
    }

    /// Makes an engine that only compiles: same code, no reservations.
    ///
    /// # Errors
    ///
    /// Whatever wasmtime says about the settings.
    pub(crate) fn compiler(&self) -> wasmtime::Result<Engine> {
        Engine::new(&self.config(Allocator::OnDemand { reason: "this engine only compiles" })?)
    }

    /// Compiling is never parallel: the crate is built without that feature, so that one compile
    /// takes one core.
    fn config(&self, allocator: Allocator) -> wasmtime::Result<Config> {
        let mut config = Config::new();
        if let Some(target) = self.machine.executor.target() {
            config.target(target)?;
        }
        config
            .cranelift_opt_level(OptLevel::Speed)
            .epoch_interruption(true)
            .wasm_component_model(true)
            .wasm_component_model_async(true)
            .wasm_backtrace_details(WasmBacktraceDetails::Disable)
            .max_wasm_stack(WASM_STACK_BYTES)
            .async_stack_size(STACK_BYTES)
            .memory_reservation(self.class.reservation_bytes())
            .memory_guard_size(self.guard_bytes())
            .memory_reservation_for_growth(self.class.guard_bytes())
            .memory_may_move(self.class == CodeClass::Tiny);
        if let Allocator::Pooling { slots } = allocator {
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(self.pool(slots)));
        }
        Ok(config)
    }

    fn pool(&self, slots: u32) -> PoolingAllocationConfig {
        let stacks = Self::stacks(slots);
        let mut pool = PoolingAllocationConfig::new();
        pool.max_memory_size(self.memory_bytes_max)
            .total_memories(slots)
            .total_component_instances(slots)
            .total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_SLOT))
            .total_tables(slots.saturating_mul(2))
            .total_stacks(stacks)
            .total_gc_heaps(stacks)
            .table_elements(TABLE_ELEMENTS_MAX)
            .max_tables_per_module(4)
            .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
            .max_tables_per_component(TABLES_PER_COMPONENT)
            .max_memories_per_component(MEMORIES_PER_COMPONENT)
            .max_component_instance_size(INSTANCE_BYTES_MAX)
            .max_core_instance_size(INSTANCE_BYTES_MAX)
            .max_unused_warm_slots(WARM_SLOTS_MAX)
            .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(self.machine.page_bytes);
        pool
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.machine)?;
        if self.machine.executor != Executor::Native {
            f.write_str("interpreted by Pulley, ")?;
        }
        match self.allocator {
            Allocator::Pooling { slots } => {
                write!(f, "pool of {slots} memories")?;
                if let Some(wanted) = self.slots_wanted {
                    write!(f, " (instead of {wanted}: the kernel refused the reservation)")?;
                }
            }
            Allocator::OnDemand { reason } => write!(f, "no pool ({reason}), memories")?,
        }
        write!(
            f,
            " of up to {} MiB, {} MiB reserved for each",
            self.memory_bytes_max >> 20,
            self.class.reservation_bytes() >> 20
        )
    }
}

/// At most half of the address space, and two slots for each MiB of memory: the smallest guests
/// use that little.
fn choose_allocator(machine: &Machine, class: CodeClass) -> Allocator {
    if class == CodeClass::Tiny {
        return Allocator::OnDemand { reason: "addresses are too short" };
    }
    let space = (1_u64 << (machine.address_bits - 1))
        .min(machine.address_bytes_max.map_or(u64::MAX, |limit| limit.saturating_sub(limit / 4)));
    let by_space = space / (class.reservation_bytes() + class.guard_bytes());
    let slots = by_space.min(slots_by_memory(machine));
    if slots < SLOTS_MIN {
        return Allocator::OnDemand { reason: "the limit of the address space is too low" };
    }
    Allocator::Pooling { slots: u32::try_from(slots).unwrap_or(u32::MAX) }
}

fn slots_by_memory(machine: &Machine) -> u64 {
    (machine.memory_bytes >> 19).clamp(SLOTS_MIN, SLOTS_MAX)
}

/// The string that tells whose compiled code an engine can load.
pub(crate) fn compatibility_hash(engine: &Engine) -> String {
    use std::fmt::Write as _;
    use std::hash::{Hash as _, Hasher};

    struct Sha(Sha256);
    impl Hasher for Sha {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }

    let mut hasher = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod tests;
