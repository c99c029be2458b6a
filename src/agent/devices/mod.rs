//! Devices of this machine: told to the cluster, and given to containers.
//!
//! Data in: `--device` flags, and the claims of pods. Data out: one `ResourceSlice` of the driver
//! `edgeorc.io`, and mounts.
//!
//! # Invariants
//!
//! - The slice is written only when it differs: an idle node writes nothing.
//! - A container gets the devices of claims that it names, and no others.

mod given;
mod publish;

pub(crate) use given::{GivenDevice, collect, of_container};
pub(crate) use publish::Publisher;

/// The driver of devices that agents themselves have.
pub(crate) const DRIVER: &str = "edgeorc.io";
