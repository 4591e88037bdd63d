//! Choosing an engine at run time: the object-safe mirror of [`Backend`].
//!
//! Every [`Backend`] is a [`DynBackend`], and a boxed [`DynBackend`] is a [`Backend`] again. So
//! code is written once, generic over `B: Backend`, and runs with an engine chosen by type or with
//! [`AnyBackend`] chosen by name.

use crate::arithmetic::Arithmetic;
use crate::backend::{Backend, CacheInfo, Identity, PlanInfo, Planned, Status, TensorInfo};
use crate::call::{Append, Attend, CopyRows, Merge, Planning, ReadRows, Update, Upload};
use crate::dtype::Dtype;
use crate::error::EngineError;
use crate::layout::CacheLayout;
use crate::problem::{Problem, Unsupported};
use crate::tensor::HostTensor;
use std::any::Any;
use std::fmt;

/// An engine behind a pointer.
pub type AnyBackend = Box<dyn DynBackend>;

trait ErasedTensor: TensorInfo + Any + fmt::Debug + Send + Sync {}
impl<T: TensorInfo + Any + fmt::Debug + Send + Sync> ErasedTensor for T {}

trait ErasedCache: CacheInfo + Any + fmt::Debug + Send + Sync {}
impl<T: CacheInfo + Any + fmt::Debug + Send + Sync> ErasedCache for T {}

trait ErasedPlan: PlanInfo + Any + fmt::Debug + Send {}
impl<T: PlanInfo + Any + fmt::Debug + Send> ErasedPlan for T {}

/// A tensor of some engine.
#[derive(Debug)]
pub struct AnyTensor(Box<dyn ErasedTensor>);

/// A cache of some engine.
#[derive(Debug)]
pub struct AnyCache(Box<dyn ErasedCache>);

/// A plan of some engine.
#[derive(Debug)]
pub struct AnyPlan(Box<dyn ErasedPlan>);

macro_rules! downcasts {
    ($any:ident, $what:literal) => {
        impl $any {
            /// The engine's own type, if it is of that engine.
            ///
            /// # Errors
            /// [`EngineError::Foreign`].
            pub fn get<T: Any>(&self) -> Result<&T, EngineError> {
                let erased: &dyn Any = &*self.0;
                erased.downcast_ref().ok_or(EngineError::Foreign { what: $what })
            }

            /// The engine's own type, if it is of that engine.
            ///
            /// # Errors
            /// [`EngineError::Foreign`].
            pub fn get_mut<T: Any>(&mut self) -> Result<&mut T, EngineError> {
                let erased: &mut dyn Any = &mut *self.0;
                erased.downcast_mut().ok_or(EngineError::Foreign { what: $what })
            }
        }
    };
}

downcasts!(AnyTensor, "tensor");
downcasts!(AnyCache, "cache");
downcasts!(AnyPlan, "plan");

impl AnyTensor {
    /// A tensor that the engine's own constructor made, foreign memory for example.
    pub fn new<T>(tensor: T) -> AnyTensor
    where
        T: TensorInfo + fmt::Debug + Send + Sync + 'static,
    {
        AnyTensor(Box::new(tensor))
    }
}

impl AnyCache {
    /// A cache that the engine's own constructor made, foreign memory for example.
    pub fn new<T: CacheInfo + fmt::Debug + Send + Sync + 'static>(cache: T) -> AnyCache {
        AnyCache(Box::new(cache))
    }
}

impl TensorInfo for AnyTensor {
    fn dtype(&self) -> Dtype {
        self.0.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
}

impl CacheInfo for AnyCache {
    fn layout(&self) -> &CacheLayout {
        self.0.layout()
    }
}

impl PlanInfo for AnyPlan {
    fn planned(&self) -> &Planned {
        self.0.planned()
    }
}

/// [`Backend`], object-safe. Implemented for every engine; implement [`Backend`] instead.
///
/// Methods mean what the methods of [`Backend`] with the same name mean. A handle of another
/// engine is answered by [`EngineError::Foreign`].
#[expect(missing_docs, reason = "each method is documented on Backend")]
#[expect(clippy::missing_errors_doc, reason = "each method is documented on Backend")]
pub trait DynBackend: fmt::Debug + Send + Sync {
    fn dyn_identity(&self) -> Identity;
    fn dyn_supports(&self, problem: &Problem) -> Result<(), Unsupported>;
    fn dyn_arithmetic(&self, problem: &Problem) -> Arithmetic;
    fn dyn_allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<AnyTensor, EngineError>;
    fn dyn_upload(&self, call: Upload<'_, AnyBackend>) -> Result<(), EngineError>;
    fn dyn_download(&self, tensor: &AnyTensor) -> Result<HostTensor, EngineError>;
    fn dyn_create_cache(&self, layout: CacheLayout) -> Result<AnyCache, EngineError>;
    fn dyn_plan(&self, call: Planning<'_>) -> Result<AnyPlan, EngineError>;
    fn dyn_update(&self, call: Update<'_, AnyBackend>) -> Result<(), EngineError>;
    fn dyn_append(&self, call: Append<'_, AnyBackend>) -> Result<(), EngineError>;
    fn dyn_copy_rows(&self, call: CopyRows<'_, AnyBackend>) -> Result<(), EngineError>;
    fn dyn_read_rows(&self, call: ReadRows<'_, AnyBackend>)
    -> Result<[HostTensor; 2], EngineError>;
    fn dyn_attend(&self, call: Attend<'_, AnyBackend>) -> Result<(), EngineError>;
    fn dyn_merge(&self, call: Merge<'_, AnyBackend>) -> Result<(), EngineError>;
    fn dyn_status(&self, plan: &AnyPlan) -> Result<Status, EngineError>;
    fn dyn_synchronize(&self) -> Result<(), EngineError>;
}

impl<B: Backend + 'static> DynBackend for B {
    fn dyn_identity(&self) -> Identity {
        self.identity()
    }

    fn dyn_supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        self.supports(problem)
    }

    fn dyn_arithmetic(&self, problem: &Problem) -> Arithmetic {
        self.arithmetic(problem)
    }

    fn dyn_allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<AnyTensor, EngineError> {
        Ok(AnyTensor::new(self.allocate(dtype, shape)?))
    }

    fn dyn_upload(&self, call: Upload<'_, AnyBackend>) -> Result<(), EngineError> {
        self.upload(Upload { tensor: call.tensor.get_mut()?, host: call.host })
    }

    fn dyn_download(&self, tensor: &AnyTensor) -> Result<HostTensor, EngineError> {
        self.download(tensor.get()?)
    }

    fn dyn_create_cache(&self, layout: CacheLayout) -> Result<AnyCache, EngineError> {
        Ok(AnyCache::new(self.create_cache(layout)?))
    }

    fn dyn_plan(&self, call: Planning<'_>) -> Result<AnyPlan, EngineError> {
        Ok(AnyPlan(Box::new(self.plan(call)?)))
    }

    fn dyn_update(&self, call: Update<'_, AnyBackend>) -> Result<(), EngineError> {
        self.update(Update { plan: call.plan.get_mut()?, step: call.step })
    }

    fn dyn_append(&self, call: Append<'_, AnyBackend>) -> Result<(), EngineError> {
        self.append(Append {
            plan: call.plan.get()?,
            cache: call.cache.get_mut()?,
            first: call.first.get()?,
            second: call.second.map(AnyTensor::get).transpose()?,
            rotating: call.rotating,
        })
    }

    fn dyn_copy_rows(&self, call: CopyRows<'_, AnyBackend>) -> Result<(), EngineError> {
        self.copy_rows(CopyRows { cache: call.cache.get_mut()?, copies: call.copies })
    }

    fn dyn_read_rows(
        &self,
        call: ReadRows<'_, AnyBackend>,
    ) -> Result<[HostTensor; 2], EngineError> {
        self.read_rows(ReadRows { cache: call.cache.get()?, slots: call.slots })
    }

    fn dyn_attend(&self, call: Attend<'_, AnyBackend>) -> Result<(), EngineError> {
        self.attend(Attend {
            plan: call.plan.get_mut()?,
            q: call.q.get()?,
            cache: call.cache.get()?,
            o: call.o.get_mut()?,
            lse: call.lse.map(AnyTensor::get_mut).transpose()?,
        })
    }

    fn dyn_merge(&self, call: Merge<'_, AnyBackend>) -> Result<(), EngineError> {
        self.merge(Merge {
            o: call.o.get_mut()?,
            lse: call.lse.get_mut()?,
            other_o: call.other_o.get()?,
            other_lse: call.other_lse.get()?,
        })
    }

    fn dyn_status(&self, plan: &AnyPlan) -> Result<Status, EngineError> {
        self.status(plan.get()?)
    }

    fn dyn_synchronize(&self) -> Result<(), EngineError> {
        self.synchronize()
    }
}

/// The way back: a boxed engine is an engine. Where one is boxed twice, `&*backend` reaches in.
impl Backend for AnyBackend {
    type Tensor = AnyTensor;
    type Cache = AnyCache;
    type Plan = AnyPlan;

    fn identity(&self) -> Identity {
        (**self).dyn_identity()
    }

    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        (**self).dyn_supports(problem)
    }

    fn arithmetic(&self, problem: &Problem) -> Arithmetic {
        (**self).dyn_arithmetic(problem)
    }

    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<AnyTensor, EngineError> {
        (**self).dyn_allocate(dtype, shape)
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        (**self).dyn_upload(call)
    }

    fn download(&self, tensor: &AnyTensor) -> Result<HostTensor, EngineError> {
        (**self).dyn_download(tensor)
    }

    fn create_cache(&self, layout: CacheLayout) -> Result<AnyCache, EngineError> {
        (**self).dyn_create_cache(layout)
    }

    fn plan(&self, call: Planning<'_>) -> Result<AnyPlan, EngineError> {
        (**self).dyn_plan(call)
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        (**self).dyn_update(call)
    }

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        (**self).dyn_append(call)
    }

    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError> {
        (**self).dyn_copy_rows(call)
    }

    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError> {
        (**self).dyn_read_rows(call)
    }

    fn attend(&self, call: Attend<'_, Self>) -> Result<(), EngineError> {
        (**self).dyn_attend(call)
    }

    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError> {
        (**self).dyn_merge(call)
    }

    fn status(&self, plan: &AnyPlan) -> Result<Status, EngineError> {
        (**self).dyn_status(plan)
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        (**self).dyn_synchronize()
    }
}
