//! A result: what somebody says that attention over a case is.

use super::case::CaseFile;
use super::error::FileError;
use super::format::Format;
use super::tensors::{Floats, TensorFile};
use super::writer::Writer;
use grouped_attention::Attended;

/// The tensors of a result file, checked against the case that it answers.
///
/// | tensor | shape | |
/// |---|---|---|
/// | `o` | `[total_q, h_q, width V]` | |
/// | `lse` | `[total_q, h_q]` | natural logarithm; may be absent |
/// | `envelope` | `[total_q, h_q, width V]` | written by the reference, not read |
#[derive(Clone, Debug)]
pub struct ResultFile {
    /// `[total_q, h_q, width V]`.
    pub o: Floats,
    /// `[total_q, h_q]`.
    pub lse: Option<Floats>,
    envelope: Option<Floats>,
    ignored: Vec<String>,
}

impl ResultFile {
    /// Reads the answer to a case from the bytes of a file.
    ///
    /// # Errors
    /// What is missing or misshapen, by its name.
    pub fn parse(bytes: &[u8], case: &CaseFile) -> Result<ResultFile, FileError> {
        let mut file = TensorFile::parse(bytes)?;
        let geometry = case.geometry();
        let rows = [case.step().total_q(), geometry.h_q()];
        let elements = [rows[0], rows[1], geometry.width_v()];
        check_shape(&mut file, "o", &elements, "[total_q, h_q, width of a value]")?;
        let lse = match file.shape("lse") {
            None => None,
            Some(_) => {
                check_shape(&mut file, "lse", &rows, "[total_q, h_q]")?;
                Some(file.floats("lse")?)
            }
        };
        file.shape("envelope");
        Ok(ResultFile { o: file.floats("o")?, lse, envelope: None, ignored: file.unasked() })
    }

    /// What the definition says, in f64.
    pub fn exact(case: &CaseFile, attended: Attended) -> ResultFile {
        let lse = attended.rows.iter().map(|row| row.lse).collect();
        let mut result = ResultFile::new(case, Format::F64, attended.o, Format::F64, lse);
        let shape = result.o.shape.clone();
        result.envelope = Some(Floats { format: Format::F64, shape, values: attended.envelope });
        result
    }

    /// What an engine says.
    pub(super) fn new(
        case: &CaseFile,
        o_format: Format,
        o: Vec<f64>,
        lse_format: Format,
        lse: Vec<f64>,
    ) -> ResultFile {
        let (total_q, h_q) = (case.step().total_q(), case.geometry().h_q());
        let o_shape = vec![total_q, h_q, case.geometry().width_v()];
        ResultFile {
            o: Floats { format: o_format, shape: o_shape, values: o },
            lse: Some(Floats { format: lse_format, shape: vec![total_q, h_q], values: lse }),
            envelope: None,
            ignored: Vec::new(),
        }
    }

    /// Names of tensors in the file that no result has.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Adds the result to a file.
    pub fn write_to(&self, writer: &mut Writer) {
        let tensors = [
            ("o", Some(&self.o)),
            ("lse", self.lse.as_ref()),
            ("envelope", self.envelope.as_ref()),
        ];
        for (name, tensor) in tensors {
            if let Some(Floats { format, shape, values }) = tensor {
                writer.floats(name, *format, shape, values);
            }
        }
    }
}

fn check_shape(
    file: &mut TensorFile<'_>,
    tensor: &'static str,
    expected: &[usize],
    axes: &'static str,
) -> Result<(), FileError> {
    match file.shape(tensor) {
        None => Err(FileError::Missing { tensor: tensor.to_owned(), expected: axes }),
        Some(got) if got == expected => Ok(()),
        Some(got) => Err(FileError::Shape {
            tensor: tensor.to_owned(),
            expected: format!("{expected:?}, which the case makes of {axes}"),
            got,
        }),
    }
}
