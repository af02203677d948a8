//! What stands behind the `?`.

use super::error::Error;
use super::path::unescape;
use super::selector::Selector;
use super::service::DryRun;

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let decode = |part: &str| unescape(&part.replace('+', " "));
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        });
        let unreadable = || Error::BadRequest(format!("unable to read the query {text:?}"));
        Ok(Query { pairs: pairs.collect::<Option<_>>().ok_or_else(unreadable)? })
    }

    /// The value of `key`, "" where it is absent.
    pub(super) fn text(&self, key: &str) -> &str {
        self.pairs.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1" | "True")
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| Error::BadRequest(format!("{key}: {text:?} is not a number")))
    }

    pub(super) fn selector(&self) -> Result<Selector, Error> {
        Selector::parse(self.text("labelSelector"), self.text("fieldSelector"))
    }

    pub(super) fn dry_run(&self) -> Result<DryRun, Error> {
        match self.text("dryRun") {
            "" => Ok(DryRun::No),
            "All" => Ok(DryRun::All),
            other => Err(Error::BadRequest(format!("dryRun: {other:?} is not All"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded() {
        let query = Query::parse("labelSelector=app%3Dvirtdp&watch=1&x=a+b&timeoutSeconds=5").unwrap();
        assert_eq!(query.text("labelSelector"), "app=virtdp");
        assert!(query.is_set("watch") && !query.is_set("follow"));
        assert_eq!(query.text("x"), "a b");
        assert_eq!(query.number("timeoutSeconds"), Ok(Some(5)));
        assert!(query.number("x").is_err());
        assert!(Query::parse("a=%f").is_err());
    }
}
