;; A WASI 0.1 command that takes memory, a MiB at a time, and writes to each page until it gets no more;
;; then it traps, as an allocator out of memory does.
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (local $page i32) (local $end i32)
    (loop $grow
      (local.set $page (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $page) (i32.const -1)) (then (unreachable)))
      (local.set $end (i32.add (local.get $page) (i32.const 16)))
      (loop $touch
        (i32.store (i32.mul (local.get $page) (i32.const 65536)) (i32.const 1))
        (local.set $page (i32.add (local.get $page) (i32.const 1)))
        (br_if $touch (i32.lt_u (local.get $page) (local.get $end))))
      (br $grow))))
