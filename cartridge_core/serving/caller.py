"""Who asks, and what that one may use."""

from dataclasses import dataclass

from cartridge_core.serving.errors import ForbiddenError
from cartridge_core.serving.model_name import CorpusReference, unknown_model


@dataclass(frozen=True)
class Caller:
    """Somebody who was let in."""

    tenant: str
    """Whose corpora are meant."""
    key_id: str | None = None
    """The API key's public part; None where no key is needed."""
    corpora: frozenset[str] | None = None
    """Corpora that may be used; None for all of the tenant's."""
    operator: bool = False
    """Whether aliases may be moved."""

    def may_use(self, corpus: str) -> bool:
        """Whether a corpus of the tenant is this caller's to use."""
        return self.corpora is None or corpus in self.corpora

    def check(self, reference: CorpusReference) -> None:
        """Refuse a corpus that is not this caller's, in the words for one that does not exist.

        Raises:
            UnknownModelError: It is not.
        """
        if not self.may_use(reference.corpus):
            raise unknown_model(str(reference))

    def check_operator(self) -> None:
        """Refuse who is no operator.

        Raises:
            ForbiddenError: It is not.
        """
        if not self.operator:
            raise ForbiddenError(
                "This needs an operator's key.", "Make one: cartridge key create NAME --operator, and send it."
            )
