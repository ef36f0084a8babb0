//! Values of Arrow arrays as JSON.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use serde_json::{Map, Value};

use crate::data::row::Row;

/// Row `at` of a batch, which is row `number` of its file, counted from 0.
pub(super) fn row(batch: &RecordBatch, at: usize, number: usize) -> Row {
    let mut row = Row { place: format!("row {}", number + 1), ..Row::default() };
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        row.fields.insert(field.name().clone(), value(column, at, &mut row.blobs));
    }
    row
}

/// Value `i` of an array. Types that no column of a known shape has become their names in brackets, so that an error about
/// such a column shows its type.
fn value(array: &dyn Array, i: usize, blobs: &mut Vec<Arc<[u8]>>) -> Value {
    macro_rules! number {
        ($kind:ty) => {
            Value::from(array.as_primitive::<$kind>().value(i))
        };
    }
    if array.is_null(i) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(i).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float16 => array.as_primitive::<Float16Type>().value(i).to_f32().into(),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Utf8 => array.as_string::<i32>().value(i).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(i).into(),
        DataType::Utf8View => array.as_string_view().value(i).into(),
        DataType::Binary => Row::hold(blobs, array.as_binary::<i32>().value(i)),
        DataType::LargeBinary => Row::hold(blobs, array.as_binary::<i64>().value(i)),
        DataType::BinaryView => Row::hold(blobs, array.as_binary_view().value(i)),
        DataType::List(_) => list(&array.as_list::<i32>().value(i), blobs),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(i), blobs),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(i), blobs),
        DataType::Struct(fields) => {
            let mut object = Map::new();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                object.insert(field.name().clone(), value(column, i, blobs));
            }
            Value::Object(object)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            value(dictionary.values(), dictionary.normalized_keys()[i], blobs)
        }
        other => Value::String(format!("({other})")),
    }
}

fn list(items: &dyn Array, blobs: &mut Vec<Arc<[u8]>>) -> Value {
    Value::Array((0..items.len()).map(|i| value(items, i, blobs)).collect())
}
