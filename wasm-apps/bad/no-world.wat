;; Valid, but neither a command, nor an HTTP handler, nor a reactor.
(module (func (export "answer") (result i32) (i32.const 42)))
