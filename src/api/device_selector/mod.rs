//! Selectors of devices: expressions in CEL over one device, as `DeviceClass` and `ResourceClaim` have
//! them. <https://cel.dev>, and KEP-4381 for the variables and functions.
//!
//! Data in: the text of an expression, and devices. Data out: whether each is one that is asked for.
//!
//! # Invariants
//!
//! - No text brings the process down or holds it up: depth and work have bounds, which are looked at
//!   before it is parsed and before it is run.
//! - What is refused here is refused when the object is written.
//!
//! Of Kubernetes' libraries there are: strings but for what makes long ones, quantities, semantic versions,
//! `cel.bind` of parts of the device, regular expressions; not: IP addresses, URLs, sets.

mod check;
mod functions;
mod values;

use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use k8s_openapi::api::resource::v1::Device;

/// Characters of what is told of a mistake: the text of a condition.
const TEXT_LEN_MAX: usize = 256;
/// The one variable of an expression.
const DEVICE: &str = "device";

/// What expressions are parsed and run with.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(functions::env()));

/// A selector, parsed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceSelector {
    program: Arc<Program>,
}

impl DeviceSelector {
    /// Parses an expression.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it: the syntax, a variable that there is not, a depth or an amount of work
    /// beyond what is allowed.
    pub fn compile(expression: &str) -> Result<Self, String> {
        check::text(expression)?;
        let program = ENV.compile(expression);
        // The lines after the first one show the text again and again.
        let first = |error: String| error.lines().next().unwrap_or_default().to_owned();
        let program =
            program.map_err(|error| format!("compilation failed: {}", first(error.to_string())))?;
        check::tree(program.expression(), &ENV)?;
        Ok(Self { program: Arc::new(program) })
    }

    /// Whether `device` of `driver` is one that is asked for. Attributes without a domain are of the
    /// driver's.
    ///
    /// # Errors
    ///
    /// When the expression cannot be evaluated for this device: it names an attribute that the device
    /// does not have, compares what cannot be compared, or is no yes or no.
    pub fn matches(&self, driver: &str, device: &Device) -> Result<bool, String> {
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.add_variable_as_val(DEVICE, Box::new(values::of_device(driver, device)));
        match self.program.execute(&context) {
            Ok(Value::Bool(is_match)) => Ok(is_match),
            Ok(_) => Err("the expression is neither true nor false".to_owned()),
            Err(error) => Err(error.to_string().chars().take(TEXT_LEN_MAX).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn camera() -> Device {
        serde_json::from_value(json!({
            "name": "camera0",
            "attributes": {
                "model": {"string": "ov5647"},
                "pixels": {"int": 5_000_000},
                "colour": {"bool": true},
                "acme.com/firmware": {"version": "1.10.2"},
                "acme.com/modes": {"strings": ["still", "film"]},
            },
            "capacity": {"memory": {"value": "2Gi"}, "acme.com/lanes": {"value": "2"}},
            "allowMultipleAllocations": false,
        }))
        .unwrap()
    }

    fn asked(expression: &str) -> Result<bool, String> {
        let selector = DeviceSelector::compile(expression).map_err(|e| format!("refused: {e}"))?;
        selector.matches("edgeorc.io", &camera())
    }

    #[test]
    fn a_device_is_told_by_driver_attributes_and_capacity() {
        for (expression, wanted) in [
            ("device.driver == 'edgeorc.io'", true),
            ("device.driver == \"acme.com\"", false),
            ("device.attributes['edgeorc.io'].model == 'ov5647'", true),
            ("device.attributes['edgeorc.io'].model.startsWith('ov')", true),
            ("device.attributes['edgeorc.io'].model.lowerAscii().matches('^ov[0-9]+$')", true),
            ("device.attributes['edgeorc.io'].pixels >= 4000000", true),
            ("device.attributes['edgeorc.io'].colour", true),
            ("'film' in device.attributes['acme.com'].modes", true),
            ("device.attributes['acme.com'].modes.exists(mode, mode == 'sound')", false),
            ("device.attributes['acme.com'].firmware.isGreaterThan(semver('1.9.9'))", true),
            ("device.attributes['acme.com'].firmware.compareTo(semver('1.10.2')) == 0", true),
            ("device.attributes['acme.com'].firmware.major() == 1", true),
            ("device.capacity['edgeorc.io'].memory.compareTo(quantity('1Gi')) >= 0", true),
            ("device.capacity['edgeorc.io'].memory.isLessThan(quantity('2048Mi'))", false),
            ("device.capacity['edgeorc.io'].memory == quantity('2048Mi')", true),
            ("device.capacity['acme.com'].lanes.asInteger() == 2", true),
            ("device.allowMultipleAllocations", false),
            ("cel.bind(own, device.attributes['edgeorc.io'], own.colour && own.pixels > 1)", true),
        ] {
            assert_eq!(asked(expression), Ok(wanted), "{expression}");
        }
    }

    /// Goal: what is asked of devices of several drivers holds for those alone that have it.
    #[test]
    fn an_unknown_domain_is_empty_and_a_missing_attribute_an_error() {
        assert_eq!(asked("has(device.attributes['other.com'].model)"), Ok(false));
        assert_eq!(asked("'model' in device.attributes['other.com']"), Ok(false));
        assert_eq!(asked("'other.com' in device.attributes"), Ok(false));
        assert_eq!(asked("device.attributes['other.com'].?model.orValue('') == 'x'"), Ok(false));
        let missing = asked("device.attributes['other.com'].model == 'x'").unwrap_err();
        assert!(missing.contains("No such key: model"), "{missing}");
        let wrong = asked("device.attributes['edgeorc.io'].model > 3").unwrap_err();
        assert!(wrong.contains("no matching overload"), "{wrong}");
        let wrong = asked("device.driver").unwrap_err();
        assert!(wrong.contains("neither true nor false"), "{wrong}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_it_is_kept() {
        for (expression, wanted) in [
            ("device.driver ==", "compilation failed"),
            ("pod.name == 'x'", "undeclared reference to 'pod'"),
            ("device.model == 'x'", "undefined field 'model'"),
            ("Device{}.x", "undeclared reference to 'Device'"),
        ] {
            let refused = asked(expression).unwrap_err();
            assert!(refused.starts_with("refused: ") && refused.contains(wanted), "{refused}");
        }
    }

    /// Goal: no text brings the process down, or holds it up.
    #[test]
    fn depth_and_work_have_bounds() {
        let deep = format!("{}true{}", "(".repeat(5000), ")".repeat(5000));
        let wide = format!("true{}", " && true".repeat(1200));
        let negated = format!("{}true", "!".repeat(9000));
        let minus = format!("{}1 == 1", "-".repeat(9000));
        for hostile in [deep, wide, negated, minus] {
            let refused = DeviceSelector::compile(&hostile).unwrap_err();
            assert!(refused.contains("at most"), "{refused}");
        }
        for (costly, wanted) in [
            ("[1].all(a, [1].all(b, b == 1))", "nested"),
            ("cel.bind(a, 'x', cel.bind(b, a + a, b == a))", "cel.bind may name"),
            ("cel.bind(a, 'x', cel.bind(b, [a, a], b == b))", "cel.bind may name"),
            ("'xx'.replace('x', 'xx').size() > 1", "replace is not allowed"),
            ("'a,b'.split(',').all(a, a != '')", "split is not allowed"),
            ("device.driver.matches('[a-z]{5000}')", "size limit"),
        ] {
            let refused = asked(costly).unwrap_err();
            assert!(refused.contains(wanted), "{costly}: {refused}");
        }
        // What is just allowed has room on a small stack.
        let most = check::SYMBOLS_MAX / 2;
        for allowed in [
            format!("true{}", " && true".repeat(most)),
            format!("1{} > 0", "+1".repeat(most)),
            format!("{}true{}", "(".repeat(check::BRACKETS_MAX), ")".repeat(check::BRACKETS_MAX)),
            format!("{}true", "!".repeat(most)),
        ] {
            assert_eq!(asked(&allowed), Ok(true), "{allowed}");
        }
        let chosen = asked(&format!("{}true", "true ? true : ".repeat(most / 2))).unwrap_err();
        assert!(chosen.contains("Recursion limit") && chosen.len() < 300, "{chosen}");
    }
}
