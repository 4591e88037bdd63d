//! What attention variants cost per cached token, against tensor-parallel degree and a device.
//!
//! Everything here is arithmetic of [`grouped_attention::cost`] and [`Sharding`]. Measured are only
//! the rates of this machine, if it is the device, and the points that a caller brings to be drawn
//! on the same roofline.
//!
//! [`Sharding`]: grouped_attention::Sharding

mod axis;
mod canvas;
pub mod device;
pub mod figure;
mod ink;
mod lanes;
pub mod points;
pub mod shape;
pub mod table;
pub mod this;
