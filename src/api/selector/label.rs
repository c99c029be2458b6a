//! Label selectors: `app=web,tier in (a,b),!old`, and `LabelSelector` objects.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta_v1;
use serde_json::Value;

use crate::api::json::{entries_at, items_at, text_at};
use crate::api::meta;
use crate::api::names;
use crate::api::selector::{SELECTOR_BYTES_MAX, SelectorError, TERMS_MAX};

/// Requirements that must all hold for the labels of an object.
///
/// Without requirements it selects everything; [`LabelSelector::nothing`] selects nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    is_nothing: bool,
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// Key of the label.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
    /// Sorted, without repetition; empty for the operators that ask for the key only.
    pub values: Vec<String>,
}

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is a number greater than the value.
    GreaterThan,
    /// The label is a number less than the value.
    LessThan,
}

impl LabelSelector {
    /// Selects every object.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects no object.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), is_nothing: true }
    }

    /// Parses the query parameter; empty text selects everything.
    ///
    /// # Errors
    ///
    /// When it does not parse, or a key or value breaks the rules of labels.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest.is_empty() {
            if requirements.len() >= TERMS_MAX {
                return Err(SelectorError::TooLong);
            }
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if parser.rest.is_empty() {
                break;
            }
            parser.expect(',')?;
            parser.skip_space();
            if parser.rest.is_empty() {
                return Err(parser.unexpected("identifier after ','"));
            }
        }
        Self::from_requirements(requirements)
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). As in Kubernetes, null
    /// selects nothing and `{}` everything.
    ///
    /// # Errors
    ///
    /// When an operator is unknown, or a key or value breaks the rules of labels.
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        if !selector.is_object() {
            return Err(SelectorError::Invalid("a label selector must be an object".to_owned()));
        }
        let mut requirements = equalities(entries_at(selector, "/matchLabels"));
        for expression in items_at(selector, "/matchExpressions") {
            let operator = operator(text_at(expression, "/operator"))?;
            let values = items_at(expression, "/values")
                .iter()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect();
            let key = text_at(expression, "/key").to_owned();
            requirements.push(Requirement { key, operator, values });
        }
        Self::from_requirements(requirements)
    }

    /// As [`Self::from_json`], of the typed object.
    ///
    /// # Errors
    ///
    /// As [`Self::from_json`].
    pub fn from_typed(selector: Option<&meta_v1::LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let labels = selector.match_labels.iter().flatten();
        let mut requirements: Vec<_> = labels
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.clone()],
            })
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            requirements.push(Requirement {
                key: expression.key.clone(),
                operator: operator(&expression.operator)?,
                values: expression.values.clone().unwrap_or_default(),
            });
        }
        Self::from_requirements(requirements)
    }

    /// This selector, with one more requirement.
    ///
    /// # Errors
    ///
    /// When the key or a value breaks the rules of labels, or there are too many.
    pub fn and(mut self, requirement: Requirement) -> Result<Self, SelectorError> {
        if self.is_nothing {
            return Ok(self);
        }
        self.requirements.push(requirement);
        Self::from_requirements(self.requirements)
    }

    /// Reads a plain map of labels, as `Service.spec.selector` is; empty or null selects nothing.
    ///
    /// # Errors
    ///
    /// When a key or value breaks the rules of labels.
    pub fn from_map(map: &Value) -> Result<Self, SelectorError> {
        let requirements = equalities(entries_at(map, ""));
        if requirements.is_empty() {
            return Ok(Self::nothing());
        }
        Self::from_requirements(requirements)
    }

    /// Reads the selector of a workload: a `LabelSelector`, or the plain map of a
    /// ReplicationController.
    ///
    /// # Errors
    ///
    /// As [`Self::from_json`].
    pub fn of_workload(selector: &Value) -> Result<Self, SelectorError> {
        let is_plain = selector.as_object().is_some_and(|map| map.values().all(Value::is_string));
        let is_empty = selector.as_object().is_some_and(serde_json::Map::is_empty);
        if is_plain && !is_empty { Self::from_map(selector) } else { Self::from_json(selector) }
    }

    fn from_requirements(mut requirements: Vec<Requirement>) -> Result<Self, SelectorError> {
        if requirements.len() > TERMS_MAX {
            return Err(SelectorError::TooLong);
        }
        for requirement in &mut requirements {
            requirement.values.sort();
            requirement.values.dedup();
            requirement.check()?;
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, is_nothing: false })
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.is_nothing
    }

    /// The requirements, sorted by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects `object` by `metadata.labels`.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels = meta::labels(object);
        self.matches_with(|key| labels.and_then(|map| map.get(key)).and_then(Value::as_str))
    }

    /// Whether it selects an object with these labels, as typed objects carry them.
    #[must_use]
    pub fn matches_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether it selects an object whose labels `get` tells.
    #[must_use]
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.is_nothing && self.requirements.iter().all(|r| r.holds(get(&r.key)))
    }
}

fn operator(name: &str) -> Result<Operator, SelectorError> {
    match name {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        other => {
            Err(SelectorError::Invalid(format!("{other:?} is not a valid label selector operator")))
        }
    }
}

fn equalities<'a>(entries: impl Iterator<Item = (&'a String, &'a Value)>) -> Vec<Requirement> {
    entries
        .map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or("").to_owned()],
        })
        .collect()
}

impl Requirement {
    fn holds(&self, label: Option<&str>) -> bool {
        let is_listed = |text: &str| self.values.iter().any(|value| value == text);
        let compared = |is: fn(&i64, &i64) -> bool| {
            let number = label.and_then(|text| text.parse().ok());
            let bound = self.values.first().and_then(|value| value.parse().ok());
            number.zip(bound).is_some_and(|(number, bound)| is(&number, &bound))
        };
        match self.operator {
            Operator::In => label.is_some_and(is_listed),
            Operator::NotIn => !label.is_some_and(is_listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => compared(i64::gt),
            Operator::LessThan => compared(i64::lt),
        }
    }

    fn check(&self) -> Result<(), SelectorError> {
        let key = &self.key;
        names::check_qualified_name(key).map_err(|rule| {
            SelectorError::Invalid(format!("key: Invalid value: {key:?}: {rule}"))
        })?;
        let fault = match self.operator {
            Operator::In | Operator::NotIn if self.values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Exists | Operator::DoesNotExist if !self.values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan
                if self.values.len() != 1
                    || self.values.iter().any(|v| v.parse::<i64>().is_err()) =>
            {
                Some("for 'Gt', 'Lt' operators, the value must be an integer")
            }
            _ => None,
        };
        if let Some(fault) = fault {
            return Err(SelectorError::Invalid(format!("values: Invalid value: {key:?}: {fault}")));
        }
        for value in &self.values {
            names::check_label_value(value).map_err(|rule| {
                SelectorError::Invalid(format!("values: Invalid value: {value:?}: {rule}"))
            })?;
        }
        Ok(())
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match (self.operator, self.values.len()) {
            (Operator::In, 1) => write!(f, "{key}={values}"),
            (Operator::NotIn, 1) => write!(f, "{key}!={values}"),
            (Operator::In, _) => write!(f, "{key} in ({values})"),
            (Operator::NotIn, _) => write!(f, "{key} notin ({values})"),
            (Operator::Exists, _) => write!(f, "{key}"),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::GreaterThan, _) => write!(f, "{key}>{values}"),
            (Operator::LessThan, _) => write!(f, "{key}<{values}"),
        }
    }
}

/// Reads requirements from the front of `rest`.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self, wanted: &str) -> SelectorError {
        let found: String = self.rest.chars().take(32).collect();
        SelectorError::Syntax(format!("found '{found}', expected: {wanted}"))
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), SelectorError> {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.unexpected(&format!("'{c}'"))),
        }
    }

    /// The longest run that contains no space and no letter of the grammar.
    fn word(&mut self) -> &'a str {
        let is_end = |c: char| c.is_whitespace() || "=!,()<>".contains(c);
        let end = self.rest.find(is_end).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.eat("!") {
            self.skip_space();
            let key = self.key()?;
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        let key = self.key()?;
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
        }
        let (operator, values) = self.comparison()?;
        Ok(Requirement { key, operator, values })
    }

    fn comparison(&mut self) -> Result<(Operator, Vec<String>), SelectorError> {
        for (token, operator) in [
            ("==", Operator::In),
            ("=", Operator::In),
            ("!=", Operator::NotIn),
            (">", Operator::GreaterThan),
            ("<", Operator::LessThan),
        ] {
            if self.eat(token) {
                self.skip_space();
                let value = self.word().to_owned();
                return Ok((operator, vec![value]));
            }
        }
        match self.word() {
            "in" => Ok((Operator::In, self.value_set()?)),
            "notin" => Ok((Operator::NotIn, self.value_set()?)),
            other => Err(SelectorError::Syntax(format!(
                "found '{other}', expected: in, notin, =, ==, !=, gt, lt"
            ))),
        }
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        match self.word() {
            "" => Err(self.unexpected("!, identifier")),
            key => Ok(key.to_owned()),
        }
    }

    fn value_set(&mut self) -> Result<Vec<String>, SelectorError> {
        self.skip_space();
        self.expect('(')?;
        let mut values = Vec::new();
        loop {
            self.skip_space();
            values.push(self.word().to_owned());
            self.skip_space();
            if self.eat(")") {
                return Ok(values);
            }
            self.expect(',')?;
        }
    }
}
