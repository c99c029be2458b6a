//! What a pod's status says, from what its worker knows.
use super::*;
