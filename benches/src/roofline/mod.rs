//! What attention variants cost per cached token, against tensor-parallel degree and a device.
//!
//! Everything here is arithmetic of [`grouped_attention::cost`] and [`Sharding`], but for the rates of
//! this machine, if it is the device, and for [`measured`], which draws what `decode` measured under
//! the roof that the same run measured.
//!
//! [`Sharding`]: grouped_attention::Sharding

mod axis;
mod canvas;
pub mod device;
pub mod figure;
mod ink;
mod lanes;
pub mod measured;
pub mod shape;
pub mod table;
pub mod this;
