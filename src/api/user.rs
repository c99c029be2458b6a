//! Who makes a request.

/// An authenticated user, as a request extension between whoever authenticated it and the API
/// server. A request without one is anonymous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserInfo {
    /// The user's name, as in a certificate's common name: `system:node:a`.
    pub name: String,
    /// The groups the user is in, as in a certificate's organizations.
    pub groups: Vec<String>,
}

impl UserInfo {
    /// The user `name` in `groups`.
    #[must_use]
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|&group| group.into()).collect() }
    }
}
