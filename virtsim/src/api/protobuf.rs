//! Bodies in Kubernetes' protobuf encoding, as far as node components send them.
//!
//! Clients in Go may be set to send core objects in protobuf; upstream Multus is. It writes two things: an Event, and
//! a pod with its network-status annotation to the `status` subresource. Of an Event everything is read, of other
//! objects the metadata; answers are JSON, which such clients take.
//!
//! Source: `k8s.io/apimachinery/pkg/runtime/generated.proto` (Unknown), `meta/v1`, `k8s.io/api/core/v1`.

use serde_json::{Map, Value, json};

use super::json::Json;
use super::time::Timestamp;

/// What such a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// What a field holds.
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Fixed-width numbers, of which none is read here.
    Fixed,
}

/// The object in a body, with as much of it as is read; none where it is not in this encoding.
pub(super) fn decode(body: &[u8]) -> Option<Value> {
    let unknown = Message(body.strip_prefix(MAGIC)?);
    let of = Message(unknown.bytes(1)?.unwrap_or_default());
    let raw = Message(unknown.bytes(2)?.unwrap_or_default());
    let kind = of.text(2)?;
    let mut object =
        json!({"apiVersion": of.text(1)?, "kind": kind, "metadata": metadata(&raw.message(1)?)?});
    if kind == "Event" {
        event(&mut object, &raw)?;
    }
    Some(object)
}

/// Whether all of an object of this kind is read, so that it may be created or replaced.
pub(super) fn is_whole(kind: &str) -> bool {
    kind == "Event"
}

/// An encoded message.
#[derive(Clone, Copy)]
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// Its fields in order; none where it is torn.
    fn fields(self) -> Option<Vec<(u64, Content<'a>)>> {
        let mut rest = self.0;
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let key = varint(&mut rest)?;
            let content = match key & 7 {
                0 => Content::Number(varint(&mut rest)?),
                1 => fixed(&mut rest, 8)?,
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let (bytes, after) = rest.split_at_checked(length)?;
                    rest = after;
                    Content::Bytes(bytes)
                }
                5 => fixed(&mut rest, 4)?,
                _ => return None,
            };
            fields.push((key >> 3, content));
        }
        Some(fields)
    }

    /// Every value of a field of bytes.
    fn every(self, wanted: u64) -> Option<Vec<&'a [u8]>> {
        let fields = self.fields()?.into_iter();
        let of_bytes = fields.filter_map(|(number, content)| match content {
            Content::Bytes(bytes) if number == wanted => Some(bytes),
            _ => None,
        });
        Some(of_bytes.collect())
    }

    /// The last value of a field; outer none: torn.
    fn bytes(self, wanted: u64) -> Option<Option<&'a [u8]>> {
        Some(self.every(wanted)?.pop())
    }

    fn message(self, wanted: u64) -> Option<Message<'a>> {
        Some(Message(self.bytes(wanted)?.unwrap_or_default()))
    }

    fn text(self, wanted: u64) -> Option<String> {
        String::from_utf8(self.bytes(wanted)?.unwrap_or_default().to_vec()).ok()
    }

    fn number(self, wanted: u64) -> Option<i64> {
        let found = self.fields()?.into_iter().rev().find_map(|(number, content)| match content {
            Content::Number(value) if number == wanted => Some(value),
            _ => None,
        });
        Some(found.unwrap_or_default().cast_signed())
    }

    /// `map<string, string>`: a message of key and value for each entry.
    fn map(self, wanted: u64) -> Option<Map<String, Value>> {
        let entries = self.every(wanted)?.into_iter().map(Message);
        entries.map(|entry| Some((entry.text(1)?, Value::String(entry.text(2)?)))).collect()
    }

    /// A `metav1.Time`, "" where it is not set.
    fn time(self, wanted: u64) -> Option<String> {
        let time = self.message(wanted)?;
        let seconds = time.number(1)?;
        Some(if seconds == 0 { String::new() } else { Timestamp::from_seconds(seconds).to_string() })
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn fixed<'a>(rest: &mut &'a [u8], length: usize) -> Option<Content<'a>> {
    *rest = rest.get(length..)?;
    Some(Content::Fixed)
}

/// The fields whose empty value means that they are absent.
fn insert(map: &mut Value, fields: impl IntoIterator<Item = (&'static str, String)>) {
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        map.put(&format!("/{name}"), value);
    }
}

fn metadata(message: &Message<'_>) -> Option<Value> {
    let mut metadata = json!({});
    insert(
        &mut metadata,
        [
            ("name", message.text(1)?),
            ("generateName", message.text(2)?),
            ("namespace", message.text(3)?),
            ("uid", message.text(5)?),
            ("resourceVersion", message.text(6)?),
        ],
    );
    for (name, field) in [("labels", 11), ("annotations", 12)] {
        let entries = message.map(field)?;
        if !entries.is_empty() {
            metadata.put(&format!("/{name}"), entries);
        }
    }
    Some(metadata)
}

fn event(object: &mut Value, message: &Message<'_>) -> Option<()> {
    let about = message.message(2)?;
    let source = message.message(5)?;
    let fields = [
        ("involvedObject/kind", about.text(1)?),
        ("involvedObject/namespace", about.text(2)?),
        ("involvedObject/name", about.text(3)?),
        ("involvedObject/uid", about.text(4)?),
        ("involvedObject/apiVersion", about.text(5)?),
        ("involvedObject/resourceVersion", about.text(6)?),
        ("involvedObject/fieldPath", about.text(7)?),
        ("reason", message.text(3)?),
        ("message", message.text(4)?),
        ("source/component", source.text(1)?),
        ("source/host", source.text(2)?),
        ("firstTimestamp", message.time(6)?),
        ("lastTimestamp", message.time(7)?),
        ("type", message.text(9)?),
        ("action", message.text(12)?),
        ("reportingComponent", message.text(14)?),
        ("reportingInstance", message.text(15)?),
    ];
    insert(object, fields);
    object.put("/count", message.number(8)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        assert!(length < 128);
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let of = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        let length = raw.len();
        let length = [u8::try_from(length & 0x7f).unwrap() | 0x80, u8::try_from(length >> 7).unwrap()];
        [MAGIC, &field(1, &of), &[2 << 3 | 2], &length, raw].concat()
    }

    #[test]
    fn a_pods_annotations_are_read() {
        let entry = [field(1, b"k8s.v1.cni.cncf.io/network-status"), field(2, b"[]")].concat();
        let metadata =
            [field(1, b"testpod1"), field(3, b"default"), field(6, b"17"), field(12, &entry)].concat();
        let object = decode(&body("Pod", &[field(1, &metadata), field(2, b"")].concat())).unwrap();
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": "testpod1", "namespace": "default", "resourceVersion": "17",
                "annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"},
            }})
        );
    }

    #[test]
    fn an_event_is_read_whole() {
        let raw = [
            field(1, &[field(1, b"testpod1.17"), field(3, b"default")].concat()),
            field(2, &[field(1, b"Pod"), field(2, b"default"), field(3, b"testpod1")].concat()),
            field(3, b"AddedInterface"),
            field(4, b"Add net1"),
            field(5, &field(1, b"multus")),
            field(7, &[1 << 3, 0x80, 0xa4, 0xa7, 0xda, 0x06]),
            vec![8 << 3, 3],
            field(9, b"Normal"),
        ]
        .concat();
        let event = decode(&body("Event", &raw)).unwrap();
        assert_eq!(event.text("/involvedObject/name"), "testpod1");
        assert_eq!(event.text("/source/component"), "multus");
        assert_eq!(event.text("/lastTimestamp"), "2027-01-15T08:00:00Z");
        assert_eq!(event.integer("/count"), Some(3));
        assert_eq!(event.get("firstTimestamp"), None);
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
            let _ = decode(&[MAGIC, &bytes].concat());
        }
    }
}
