//! Objects are kept as JSON values, since the API server serves kinds that it has never heard of. This is how the
//! rest reads and writes them: by JSON pointer (RFC 6901), never by an index that may panic.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Reads and writes by JSON pointer; what is absent reads as empty.
pub trait Json {
    /// The string there, or "".
    fn text(&self, pointer: &str) -> &str;
    /// The array there, or nothing.
    fn items(&self, pointer: &str) -> &[Value];
    /// The object there, or none.
    fn map(&self, pointer: &str) -> Option<&Map<String, Value>>;
    /// The integer there.
    fn integer(&self, pointer: &str) -> Option<i64>;
    /// Whether `true` stands there.
    fn is_true(&self, pointer: &str) -> bool;
    /// Writes `value` there and makes the objects that lead to it. Arrays on the way are left alone.
    fn put(&mut self, pointer: &str, value: impl Into<Value>);
    /// Takes out what is there.
    fn take_out(&mut self, pointer: &str) -> Option<Value>;

    /// `metadata.name`.
    fn name(&self) -> &str {
        self.text("/metadata/name")
    }
    /// `metadata.namespace`, or "" for an object of the cluster.
    fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }
    /// `metadata.uid`.
    fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }
    /// `metadata.resourceVersion` as the number that it is here.
    fn resource_version(&self) -> Option<u64> {
        self.text("/metadata/resourceVersion").parse().ok()
    }
    /// Whether `metadata.deletionTimestamp` is set.
    fn is_terminating(&self) -> bool {
        !self.text("/metadata/deletionTimestamp").is_empty()
    }
    /// `metadata.labels`.
    fn labels(&self) -> BTreeMap<String, String> {
        self.texts("/metadata/labels")
    }
    /// `metadata.annotations`.
    fn annotations(&self) -> BTreeMap<String, String> {
        self.texts("/metadata/annotations")
    }
    /// The strings of the object there.
    fn texts(&self, pointer: &str) -> BTreeMap<String, String> {
        let pairs = self.map(pointer).into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }
}

impl Json for Value {
    fn text(&self, pointer: &str) -> &str {
        self.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn items(&self, pointer: &str) -> &[Value] {
        self.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn map(&self, pointer: &str) -> Option<&Map<String, Value>> {
        self.pointer(pointer).and_then(Value::as_object)
    }

    fn integer(&self, pointer: &str) -> Option<i64> {
        self.pointer(pointer).and_then(Value::as_i64)
    }

    fn is_true(&self, pointer: &str) -> bool {
        self.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
    }

    fn put(&mut self, pointer: &str, value: impl Into<Value>) {
        let mut here = self;
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            if here.is_array() {
                match step.parse::<usize>().ok().and_then(|index| here.get_mut(index)) {
                    Some(item) => here = item,
                    None => return,
                }
                continue;
            }
            if !here.is_object() {
                *here = Value::Object(Map::new());
            }
            let Value::Object(map) = here else { return };
            here = map.entry(step).or_insert(Value::Null);
        }
        *here = value.into();
    }

    fn take_out(&mut self, pointer: &str) -> Option<Value> {
        let (parent, key) = pointer.rsplit_once('/')?;
        self.pointer_mut(parent)?.as_object_mut()?.remove(&key.replace("~1", "/").replace("~0", "~"))
    }
}

/// A key as it stands in a JSON pointer.
#[must_use]
pub fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_put_is_read_back() {
        let mut object = json!({"metadata": {"name": "a"}, "list": [{}, {}]});
        object.put("/metadata/annotations/k8s.v1.cni.cncf.io~1networks", "virt-net1");
        object.put("/list/1/x", 5);
        object.put("/list/7/x", 5);
        assert_eq!(object.name(), "a");
        assert_eq!(object.annotations()["k8s.v1.cni.cncf.io/networks"], "virt-net1");
        assert_eq!(object.integer("/list/1/x"), Some(5));
        assert_eq!(object.items("/list").len(), 2);
        assert_eq!(object.take_out("/metadata/name"), Some(json!("a")));
        assert_eq!(object.name(), "");
    }
}
