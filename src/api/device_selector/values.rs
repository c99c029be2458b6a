//! A device as expressions see it.

use std::any::Any;
use std::collections::BTreeMap;

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as Values, Sizer};
use cel::common::types::{CelBool, CelInt, CelList, CelMap, CelMapKey, CelString, MAP_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use semver::Version;

use crate::api::quantity::Quantity;

static AMOUNT: Type = Type::new_unspecified_type("kubernetes.Quantity");
static RELEASE: Type = Type::new_unspecified_type("kubernetes.Semver");

#[expect(clippy::disallowed_types, reason = "cel's interface; nothing depends on the order")]
type Entries = std::collections::HashMap<CelMapKey<'static>, Box<dyn Val>>;

/// A quantity.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amount(pub(super) Quantity);

impl Amount {
    /// As a whole number, if it is one that fits.
    pub(super) fn whole(&self) -> Option<i64> {
        let units = self.0.units();
        let back = i128::from(units).checked_mul(1_000_000_000)?;
        (back == self.0.nanos()).then_some(units)
    }
}

/// A semantic version.
#[derive(Debug, Clone)]
pub(super) struct Release(pub(super) Version);

impl Val for Amount {
    fn get_type(&self) -> &Type {
        &AMOUNT
    }

    fn cel_type() -> &'static Type {
        &AMOUNT
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>().is_some_and(|other| other.0.nanos() == self.0.nanos())
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(*self)
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Amount {}

impl Val for Release {
    fn get_type(&self) -> &Type {
        &RELEASE
    }

    fn cel_type() -> &'static Type {
        &RELEASE
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>().is_some_and(|other| other.0 == self.0)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Release {}

/// Attributes or capacities by domain and name. A domain that the device has nothing of is empty: what
/// is asked of the devices of one driver can be asked of all.
#[derive(Debug, Clone, Default)]
struct Domains {
    known: CelMap<'static>,
    empty: CelMap<'static>,
}

impl Domains {
    /// Of named values; a name without a domain is of the driver's.
    fn of<'a>(driver: &str, values: impl Iterator<Item = (&'a String, Box<dyn Val>)>) -> Self {
        let mut domains: BTreeMap<String, Entries> = BTreeMap::new();
        for (name, value) in values {
            let (domain, name) = name.split_once('/').unwrap_or((driver, name));
            let entries = domains.entry(domain.to_owned()).or_default();
            entries.insert(name.to_owned().into(), value);
        }
        let boxed = |(domain, entries): (String, Entries)| -> (CelMapKey<'static>, Box<dyn Val>) {
            (CelMapKey::from(domain), Box::new(CelMap::from(entries)))
        };
        let known: Entries = domains.into_iter().map(boxed).collect();
        Self { known: known.into(), empty: CelMap::default() }
    }
}

impl Val for Domains {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        self.known.as_container()
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        self.known.as_sizer()
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Domains {}

impl Indexer for Domains {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        match self.known.get(index) {
            Err(ExecutionError::NoSuchKey(_)) => Ok(CowVal::Borrowed(&self.empty)),
            found => found,
        }
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl Iterable for Domains {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Values<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Iterable::iter(&self.known)
    }
}

/// The variable `device`.
pub(super) fn of_device(driver: &str, device: &Device) -> CelMap<'static> {
    let attributes = device.attributes.iter().flatten();
    let attributes = attributes.filter_map(|(name, value)| Some((name, of_attribute(value)?)));
    let capacity = device.capacity.iter().flatten();
    let capacity = capacity.filter_map(|(name, capacity)| {
        let amount: Box<dyn Val> = Box::new(Amount(capacity.value.0.parse().ok()?));
        Some((name, amount))
    });
    let is_shared = device.allow_multiple_allocations.unwrap_or(false);
    let entries: [(&str, Box<dyn Val>); 4] = [
        ("driver", text(driver)),
        ("attributes", Box::new(Domains::of(driver, attributes))),
        ("capacity", Box::new(Domains::of(driver, capacity))),
        ("allowMultipleAllocations", Box::new(CelBool::from(is_shared))),
    ];
    let entries: Entries =
        entries.into_iter().map(|(name, value)| (name.to_owned().into(), value)).collect();
    entries.into()
}

fn text(text: &str) -> Box<dyn Val> {
    Box::new(CelString::from(text.to_owned()))
}

/// Its value; `None`: it has none that is known here.
fn of_attribute(attribute: &DeviceAttribute) -> Option<Box<dyn Val>> {
    let release =
        |text: &String| -> Option<Box<dyn Val>> { Some(Box::new(Release(text.parse().ok()?))) };
    if let Some(value) = attribute.bool {
        return Some(Box::new(CelBool::from(value)));
    }
    if let Some(value) = attribute.int {
        return Some(Box::new(CelInt::from(value)));
    }
    if let Some(value) = &attribute.string {
        return Some(text(value));
    }
    if let Some(value) = &attribute.version {
        return release(value);
    }
    let bools = attribute.bools.iter().flatten();
    let ints = attribute.ints.iter().flatten();
    let bools = bools.map(|value| -> Box<dyn Val> { Box::new(CelBool::from(*value)) });
    let ints = ints.map(|value| -> Box<dyn Val> { Box::new(CelInt::from(*value)) });
    let strings = attribute.strings.iter().flatten().map(|value| text(value));
    let versions = attribute.versions.iter().flatten().filter_map(release);
    let all: Vec<Box<dyn Val>> = bools.chain(ints).chain(strings).chain(versions).collect();
    (!all.is_empty()).then(|| -> Box<dyn Val> { Box::new(CelList::from(all)) })
}
