//! Tests of the crossing rings.
