;; A WASI 0.1 command that needs a function no host offers.
(module
  (import "env" "mystery" (func $mystery))
  (memory (export "memory") 1)
  (func (export "_start") (call $mystery)))
