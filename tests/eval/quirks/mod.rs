//! Each quirk of a reference scorer that changes a score, as a test of its own, beside the strict reading where it is a fault.

mod answers;
mod judged;
mod recall_coco;
