//! Guests that mean harm and are made when they are needed: generated modules, and a bomb for the
//! compiler. Shared by the tests of the runtime, the end-to-end tests and `just bench-pods`.

use arbitrary::Unstructured;

/// Bytes from which one module is made.
const SEED_BYTES: usize = 4096;

/// What generated modules may import: enough of WASI to do nonsense with.
const IMPORTS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))"#;
const EXPORTS: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

/// Bytes that look random and are the same each time.
fn seeded(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(SEED_BYTES / 8)
    .flatten()
    .collect()
}

/// A valid module that nobody wrote, the same for the same seed; `None` for some seeds.
pub(crate) fn generated(seed: u64) -> Option<Vec<u8>> {
    let bytes = seeded(seed);
    let config = wasm_smith::Config {
        available_imports: Some(wat::parse_str(IMPORTS).unwrap()),
        exports: Some(wat::parse_str(EXPORTS).unwrap()),
        max_memory32_bytes: 64 << 20,
        ..wasm_smith::Config::default()
    };
    let module = wasm_smith::Module::new(config, &mut Unstructured::new(&bytes)).ok()?;
    Some(module.to_bytes())
}

/// A valid command whose one function makes an optimising compiler run out of time or memory: many
/// loops, and in each of them all of many variables change.
pub(crate) fn compile_bomb() -> Vec<u8> {
    const VARIABLES: u32 = 4_000;
    const LOOPS: u32 = 160;
    // One group of i32 locals.
    let mut body = [vec![1], leb(VARIABLES), vec![0x7f]].concat();
    for _ in 0..LOOPS {
        body.extend([0x03, 0x40]); // loop
        for at in 0..VARIABLES {
            let (this, next) = (leb(at), leb((at + 1) % VARIABLES));
            // local = local + next
            body.extend([&[0x20][..], &this, &[0x20], &next, &[0x6a, 0x21], &this].concat());
        }
        body.extend([0x20, 0x00, 0x0d, 0x00, 0x0b]); // local.get 0, br_if 0, end
    }
    body.push(0x0b);
    let exports = [&[2][..], &sized(b"memory"), &[2, 0], &sized(b"_start"), &[0, 0]].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[1, 0x60, 0, 0]),
        section(3, &[1, 0]),
        section(5, &[1, 0, 1]),
        section(7, &exports),
        section(10, &[vec![1], sized(&body)].concat()),
    ]
    .concat()
}

fn leb(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [leb(u32::try_from(bytes.len()).unwrap()), bytes.to_vec()].concat()
}

fn section(id: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![id], sized(bytes)].concat()
}
