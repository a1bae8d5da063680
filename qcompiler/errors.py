"""Every error that qcompiler raises for a fault of its input.

QCompilerError
├── ConfigError         an option or a combination of options is not allowed
├── FrontendError       the model can't be read, captured or imported
│   └── UnsupportedOperatorError   an operator has no import, with its place in the user's source
├── CalibrationError    calibration data is empty, misshapen, or not finite
├── QuantizationError   the model can't be quantized as asked
├── CompressionError    the model can't be pruned, masked or distilled as asked
├── TargetError         unknown target, or a target that cannot do what is asked
├── PassError           a pass left the module in a state the next phase refuses
├── BuildError          code generation or linking failed
├── TuningError         a model cannot be tuned, or candidates cannot be measured
│   └── TuningLogError  a tuning log is damaged, or made for something else
├── SearchError         no plan of precisions keeps the promises that were asked for
├── BundleError         a bundle is missing files, damaged, or of another format
│   ├── CpuError        the bundle needs CPU features that this machine lacks
│   ├── GpuError        the bundle needs a GPU that this machine lacks
│   └── SignatureError  a required signature is missing or wrong
├── InputError          inputs of a run have the wrong names, shapes, or dtypes
└── VerificationError   outputs differ from the reference

A message says what is wrong, where, what is allowed, and what to do next, in one line.
"""


class QCompilerError(Exception):
    """Base of all errors caused by input; the command line prints them as one line."""


class ConfigError(QCompilerError):
    """An option has a value that is not allowed."""


class FrontendError(QCompilerError):
    """The model cannot be read, captured or imported."""


class UnsupportedOperatorError(FrontendError):
    """An operator of the model has no import into the compiler."""


class CalibrationError(QCompilerError):
    """Calibration data is empty, misshapen, or not finite."""


class QuantizationError(QCompilerError):
    """The model cannot be quantized as asked."""


class CompressionError(QCompilerError):
    """The model cannot be pruned, masked or distilled as asked."""


class TargetError(QCompilerError):
    """A target is unknown or cannot do what is asked of it."""


class PassError(QCompilerError):
    """A module breaks an invariant that the next phase relies on."""


class BuildError(QCompilerError):
    """Code generation or linking failed."""


class TuningError(QCompilerError):
    """A model cannot be tuned, or candidates cannot be measured."""


class TuningLogError(TuningError):
    """A tuning log is damaged, or was made for another target or version."""


class SearchError(QCompilerError):
    """No plan of precisions keeps the promises that were asked for."""


class BundleError(QCompilerError):
    """A bundle is incomplete, damaged, or of an unknown format."""


class CpuError(BundleError):
    """A bundle needs CPU features that this machine lacks."""


class GpuError(BundleError):
    """A bundle needs a GPU, or one that can do more, or its driver."""


class SignatureError(BundleError):
    """A bundle's required signature is missing, or is not its key owner's signature of this bundle."""


class InputError(QCompilerError):
    """Inputs of a run do not match the model's."""


class VerificationError(QCompilerError):
    """Outputs differ from the reference."""
