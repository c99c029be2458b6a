//! What an expression may be: judged by its text before it is parsed, for the parser goes as deep as
//! the text does, and by its tree before it is run.

use cel::Env;
use cel::common::ast::{EntryExpr, Expr, IdedExpr};

use crate::api::device_selector::DEVICE;

/// Brackets that are opened, in texts as well: no nesting is deeper.
pub(super) const BRACKETS_MAX: usize = 32;
/// Operators and other symbols, in texts as well: no chain is longer.
pub(super) const SYMBOLS_MAX: usize = 512;
/// Comprehensions (`all`, `exists`, `map`, …) inside each other: their work multiplies.
const COMPREHENSIONS_MAX: usize = 1;
/// Functions whose result may be much longer than what they are given, or is something to loop over.
const GROWING: [&str; 4] = ["format", "join", "replace", "split"];
/// The calls that a value of `cel.bind` may have: they choose a part of something.
const CHOICES: [&str; 3] = ["_[_]", "_[?_]", "_?._"];
/// What is known of a device.
const FIELDS: [&str; 4] = ["driver", "attributes", "capacity", "allowMultipleAllocations"];
/// Names in front of functions that are no variables.
const NAMESPACES: [&str; 2] = ["optional", "strings"];

/// Whether a text may be parsed.
pub(super) fn text(expression: &str) -> Result<(), String> {
    let is_opening = |c: &char| matches!(c, '(' | '[' | '{');
    if expression.chars().filter(is_opening).count() > BRACKETS_MAX {
        return Err(format!("too complex: at most {BRACKETS_MAX} brackets are allowed"));
    }
    let is_symbol = |c: &char| c.is_ascii_punctuation() && !matches!(c, '_' | '"' | '\'');
    // Operators of two characters count as two.
    if expression.chars().filter(is_symbol).count() > 2 * SYMBOLS_MAX {
        return Err(format!("too complex: at most {SYMBOLS_MAX} operators are allowed"));
    }
    Ok(())
}

/// Whether a tree may be run.
pub(super) fn tree(expression: &IdedExpr, env: &Env) -> Result<(), String> {
    Names { env, bound: Vec::new(), comprehensions: 0 }.check(expression)
}

struct Names<'a> {
    env: &'a Env,
    /// Variables of the comprehensions that are around.
    bound: Vec<&'a str>,
    /// How many those are.
    comprehensions: usize,
}

impl<'a> Names<'a> {
    fn check(&mut self, expression: &'a IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Unspecified => Err("compilation failed: an empty expression".to_owned()),
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.check_name(name),
            Expr::Select(select) => {
                let is_device = matches!(&select.operand.expr, Expr::Ident(name) if name == DEVICE);
                if is_device && !FIELDS.contains(&select.field.as_str()) {
                    return Err(format!("compilation failed: undefined field '{}'", select.field));
                }
                self.check(&select.operand)
            }
            Expr::Call(call) => {
                if GROWING.contains(&call.func_name.as_str()) {
                    return Err(format!("too complex: {} is not allowed", call.func_name));
                }
                let is_namespace = |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if NAMESPACES.contains(&name.as_str()));
                let target = call.target.as_deref().filter(|target| !is_namespace(target));
                target.into_iter().chain(&call.args).try_for_each(|part| self.check(part))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.check(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.check(&entry.key).and_then(|()| self.check(&entry.value))
                }
                EntryExpr::StructField(field) => self.check(&field.value),
            }),
            Expr::Struct(made) => Err(undeclared(&made.type_name)),
            Expr::Comprehension(over) => {
                self.check(&over.iter_range)?;
                self.check(&over.accu_init)?;
                // `cel.bind` is one over nothing.
                let is_loop =
                    !matches!(&over.iter_range.expr, Expr::List(l) if l.elements.is_empty());
                if !is_loop && !is_choice(&over.accu_init) {
                    return Err(
                        "too complex: cel.bind may name an attribute, a capacity or their domain"
                            .to_owned(),
                    );
                }
                let (bound, comprehensions) = (self.bound.len(), self.comprehensions);
                self.comprehensions += usize::from(is_loop);
                if self.comprehensions > COMPREHENSIONS_MAX {
                    return Err(format!(
                        "too complex: at most {COMPREHENSIONS_MAX} comprehensions may be nested"
                    ));
                }
                self.bound.extend([over.iter_var.as_str(), over.accu_var.as_str()]);
                self.bound.extend(over.iter_var2.as_deref());
                for part in [&over.loop_cond, &over.loop_step, &over.result] {
                    self.check(part)?;
                }
                self.bound.truncate(bound);
                self.comprehensions = comprehensions;
                Ok(())
            }
        }
    }

    fn check_name(&self, name: &str) -> Result<(), String> {
        let is_known = name == DEVICE
            || self.bound.contains(&name)
            || self.env.types().find_type(name).is_some();
        if is_known { Ok(()) } else { Err(undeclared(name)) }
    }
}

/// Whether it is a part of the device, or a literal: nothing that is named several times grows.
fn is_choice(value: &IdedExpr) -> bool {
    match &value.expr {
        Expr::Ident(_) | Expr::Literal(_) => true,
        Expr::Select(select) => is_choice(&select.operand),
        Expr::Call(call) => {
            CHOICES.contains(&call.func_name.as_str())
                && call.target.iter().all(|target| is_choice(target))
                && call.args.iter().all(is_choice)
        }
        _ => false,
    }
}

fn undeclared(name: &str) -> String {
    format!("compilation failed: undeclared reference to '{name}'")
}
