//! The condition of an APIService, in Kubernetes' words: a pure function.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition,
};

use crate::controllers::object::Key;

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It is of this server.
    Local,
    NoService(Key),
    NoEndpoints(Key),
    NoneReady(Key),
    /// Its server does not answer, and why.
    Silent(String),
    Answer,
}

/// The condition, if it says something else than the one that is there.
pub(super) fn condition(
    api_service: &APIService,
    found: &Found,
    now: Timestamp,
) -> Option<APIServiceCondition> {
    let (is_available, reason, message) = match found {
        Found::Local => (true, "Local", "Local APIServices are always available".to_owned()),
        Found::NoService((namespace, name)) => {
            (false, "ServiceNotFound", format!("service/{name} in {namespace:?} is not present"))
        }
        Found::NoEndpoints((namespace, name)) => (
            false,
            "EndpointsNotFound",
            format!("cannot find endpointslices for service/{name} in {namespace:?}"),
        ),
        Found::NoneReady((namespace, name)) => (
            false,
            "MissingEndpoints",
            format!("endpointslices for service/{name} in {namespace:?} have no addresses"),
        ),
        Found::Silent(why) => {
            (false, "FailedDiscoveryCheck", format!("failing or missing response: {why}"))
        }
        Found::Answer => (true, "Passed", "all checks passed".to_owned()),
    };
    let status = if is_available { "True" } else { "False" };
    let conditions = api_service.status.as_ref().and_then(|status| status.conditions.as_ref());
    let had = conditions.into_iter().flatten().find(|condition| condition.type_ == "Available");
    let is_same = had.is_some_and(|had| {
        had.status == status
            && had.reason.as_deref() == Some(reason)
            && had.message.as_deref() == Some(&message)
    });
    let since = had.filter(|had| had.status == status);
    let since = since.and_then(|had| had.last_transition_time.clone());
    (!is_same).then(|| APIServiceCondition {
        type_: "Available".to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceStatus;

    use super::*;

    #[test]
    fn a_condition_is_told_when_it_changes_and_keeps_its_time_while_it_holds() {
        let key = ("n".to_owned(), "adapter".to_owned());
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let mut service = APIService::default();
        let mut tell = |found: &Found, seconds: i64| {
            let condition = condition(&service, found, at(seconds))?;
            service.status = Some(APIServiceStatus { conditions: Some(vec![condition.clone()]) });
            let since = condition.last_transition_time.unwrap().0.as_second();
            Some((condition.status, condition.reason.unwrap(), since))
        };
        let told = |status: &str, reason: &str, since: i64| {
            Some((status.to_owned(), reason.to_owned(), since))
        };
        assert_eq!(tell(&Found::NoService(key.clone()), 1), told("False", "ServiceNotFound", 1));
        assert_eq!(tell(&Found::NoService(key.clone()), 2), None);
        assert_eq!(tell(&Found::NoneReady(key), 3), told("False", "MissingEndpoints", 1));
        assert_eq!(tell(&Found::Answer, 4), told("True", "Passed", 4));
        assert_eq!(
            tell(&Found::Silent("x".to_owned()), 5),
            told("False", "FailedDiscoveryCheck", 5)
        );
        assert_eq!(condition(&APIService::default(), &Found::Local, at(1)).unwrap().status, "True");
    }
}
