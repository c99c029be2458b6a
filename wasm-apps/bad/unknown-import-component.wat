;; A command component that needs an interface no host offers.
(component
  (import "acme:mystery/door@1.0.0" (instance (export "open" (func))))
  (core module $module (func (export "run") (result i32) (i32.const 0)))
  (core instance $instance (instantiate $module))
  (func $run (result (result)) (canon lift (core func $instance "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))
