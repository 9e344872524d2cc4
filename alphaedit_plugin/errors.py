"""What can go wrong, typed. Every message names the thing at fault and the remedy."""


class AlphaEditError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelStructureError(AlphaEditError):
    """A model, a layer or a weight is not shaped in a way that can be edited."""


class StatisticsError(AlphaEditError):
    """A covariance is missing, damaged, not finite, or made from too little text."""


class CorpusError(AlphaEditError):
    """A text source is missing, empty or malformed."""


class NullSpaceError(AlphaEditError):
    """A null space cannot be formed with the given criterion, or a file of them cannot be read."""


class WrongModelError(NullSpaceError):
    """A null space belongs to another model than the one it is being attached to."""


class RequestError(AlphaEditError):
    """An edit request is malformed. The message names the record."""


class ChatError(AlphaEditError):
    """A tokenizer has no chat template, or one that prompts cannot be wrapped in."""


class HyperparameterError(AlphaEditError):
    """A hyperparameter file is malformed or holds an unknown or ill-typed key."""


class RegistrationError(HyperparameterError):
    """A method or modifier cannot be registered: it lacks something, or its name is taken."""


class EditError(AlphaEditError):
    """An edit failed; the model is as it was before."""


class GuardError(EditError):
    """A projection hook was misused, or a guarded edit went wrong and was rolled back."""


class SessionError(AlphaEditError):
    """A session cannot be saved or resumed; model and files are unchanged."""


class SessionDamagedError(SessionError):
    """A session's folder holds something else than what was saved there."""


class SessionInUseError(SessionError):
    """A session's folder belongs to another Session, in this process or another one; nothing was changed."""


class TuningError(AlphaEditError):
    """Nothing could be traced or tuned: the facts do not show anything, or the budget was over too soon."""


class CompareError(AlphaEditError):
    """The folder of a comparison cannot be read or written."""


class JudgeError(AlphaEditError):
    """A judge of answers cannot be asked, or says something else than a verdict; nothing was measured."""


class StoreError(AlphaEditError):
    """The cache directory cannot be written or an entry in it cannot be used."""


class PatchError(AlphaEditError):
    """A patch is damaged, or does not fit the model; the model is as it was."""


class HubError(AlphaEditError):
    """A folder cannot be published on the Hugging Face Hub; it stays here as it is."""
