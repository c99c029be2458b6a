//! What expressions can call beyond CEL's own functions, with Kubernetes' names.

use cel::common::ast::{Expr, ListExpr, LiteralValue};
use cel::common::types::{CelBool, CelInt, CelString};
use cel::parser::Macro;
use cel::{DeclarationError, Env, ExecutionError};
use regex::RegexBuilder;

use crate::api::device_selector::values::{Amount, Release};

/// Bytes that a regular expression may take when it is compiled.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Never read: `cel.bind` loops over nothing.
const UNUSED: &str = "#unused";

/// The environment of selectors.
pub(super) fn env() -> Env {
    let mut env = Env::stdlib();
    for extension in [cel::extensions::strings, quantities, versions, patterns, bindings] {
        let added = env.add_extension(extension);
        // It fails for names that are declared twice, whatever the input.
        debug_assert!(added.is_ok(), "{added:?}");
    }
    env
}

fn quantities(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn quantity: (CelString) -> Result<Amount>)?;
    cel::add_overload!(env, fn is_quantity: (CelString) -> CelBool)?;
    cel::add_member_overload!(env, fn amount_compare: (Amount, Amount) -> CelInt, name = "compareTo")?;
    cel::add_member_overload!(env, fn amount_greater: (Amount, Amount) -> CelBool, name = "isGreaterThan")?;
    cel::add_member_overload!(env, fn amount_less: (Amount, Amount) -> CelBool, name = "isLessThan")?;
    cel::add_member_overload!(env, fn sign: (Amount) -> CelInt)?;
    cel::add_member_overload!(env, fn is_integer: (Amount) -> CelBool)?;
    cel::add_member_overload!(env, fn as_integer: (Amount) -> Result<CelInt>)?;
    Ok(())
}

fn versions(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn semver: (CelString) -> Result<Release>)?;
    cel::add_overload!(env, fn is_semver: (CelString) -> CelBool)?;
    cel::add_member_overload!(env, fn release_compare: (Release, Release) -> CelInt, name = "compareTo")?;
    cel::add_member_overload!(env, fn release_greater: (Release, Release) -> CelBool, name = "isGreaterThan")?;
    cel::add_member_overload!(env, fn release_less: (Release, Release) -> CelBool, name = "isLessThan")?;
    cel::add_member_overload!(env, fn major: (Release) -> CelInt)?;
    cel::add_member_overload!(env, fn minor: (Release) -> CelInt)?;
    cel::add_member_overload!(env, fn patch: (Release) -> CelInt)?;
    Ok(())
}

fn patterns(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_member_overload!(env, fn matches: (CelString, CelString) -> Result<CelBool>)
}

/// `cel.bind(name, value, expression)`: a fold over nothing, with the value as what it begins with.
fn bindings(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_macro(Macro::receiver("bind", 3, |helper, target, args| {
        let is_ours =
            target.as_ref().is_some_and(|t| matches!(&t.expr, Expr::Ident(name) if name == "cel"));
        let Some(Expr::Ident(name)) = args.first().map(|arg| arg.expr.clone()) else {
            return Ok(None);
        };
        if !is_ours {
            return Ok(None);
        }
        let mut args = std::mem::take(args).into_iter().skip(1);
        let (Some(value), Some(body)) = (args.next(), args.next()) else { return Ok(None) };
        let fold = cel::common::ast::ComprehensionExpr {
            iter_range: helper.next_expr(Expr::List(ListExpr::new(Vec::new()))),
            iter_var: UNUSED.to_owned(),
            iter_var2: None,
            accu_var: name.clone(),
            accu_init: value,
            loop_cond: helper.next_expr(Expr::Literal(LiteralValue::Boolean(CelBool::from(false)))),
            loop_step: helper.next_expr(Expr::Ident(name)),
            result: body,
        };
        Ok(Some(helper.next_expr(Expr::Comprehension(Box::new(fold)))))
    }))
}

fn quantity(text: &CelString<'_>) -> Result<Amount, ExecutionError> {
    let failed = |error| ExecutionError::function_error("quantity", error);
    text.inner().parse().map(Amount).map_err(failed)
}

fn is_quantity(text: &CelString<'_>) -> CelBool {
    quantity(text).is_ok().into()
}

fn amount_compare(left: &Amount, right: &Amount) -> CelInt {
    (left.0.nanos().cmp(&right.0.nanos()) as i64).into()
}

fn amount_greater(left: &Amount, right: &Amount) -> CelBool {
    (left.0.nanos() > right.0.nanos()).into()
}

fn amount_less(left: &Amount, right: &Amount) -> CelBool {
    (left.0.nanos() < right.0.nanos()).into()
}

fn sign(amount: &Amount) -> CelInt {
    i64::from(amount.0.nanos().signum() as i8).into()
}

fn is_integer(amount: &Amount) -> CelBool {
    amount.whole().is_some().into()
}

fn as_integer(amount: &Amount) -> Result<CelInt, ExecutionError> {
    let failed = || ExecutionError::function_error("asInteger", "the quantity is no integer");
    amount.whole().map(CelInt::from).ok_or_else(failed)
}

fn semver(text: &CelString<'_>) -> Result<Release, ExecutionError> {
    let failed = |error| ExecutionError::function_error("semver", error);
    text.inner().parse().map(Release).map_err(failed)
}

fn is_semver(text: &CelString<'_>) -> CelBool {
    semver(text).is_ok().into()
}

fn release_compare(left: &Release, right: &Release) -> CelInt {
    (left.0.cmp_precedence(&right.0) as i64).into()
}

fn release_greater(left: &Release, right: &Release) -> CelBool {
    left.0.cmp_precedence(&right.0).is_gt().into()
}

fn release_less(left: &Release, right: &Release) -> CelBool {
    left.0.cmp_precedence(&right.0).is_lt().into()
}

fn major(release: &Release) -> CelInt {
    i64::try_from(release.0.major).unwrap_or(i64::MAX).into()
}

fn minor(release: &Release) -> CelInt {
    i64::try_from(release.0.minor).unwrap_or(i64::MAX).into()
}

fn patch(release: &Release) -> CelInt {
    i64::try_from(release.0.patch).unwrap_or(i64::MAX).into()
}

fn matches(text: &CelString<'_>, pattern: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let built = RegexBuilder::new(pattern.inner()).size_limit(PATTERN_BYTES_MAX).build();
    let built = built.map_err(|error| ExecutionError::function_error("matches", error))?;
    Ok(built.is_match(text.inner()).into())
}
