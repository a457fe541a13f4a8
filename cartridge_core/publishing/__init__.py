"""From a finished Cartridge to one that is served, and back: registering, the gate, aliases, erasure, exchange."""

from cartridge_core.publishing.composition import CompositionGrades, judge_composition, record_judged
from cartridge_core.publishing.drift import AliasDrift, find_drift, project_alias
from cartridge_core.publishing.erasure import Erasure, delete
from cartridge_core.publishing.exchange import export_cartridge, import_cartridge
from cartridge_core.publishing.gate import GateDecision, PromotionGate, decide
from cartridge_core.publishing.promotion import Promotion, promote, rollback
from cartridge_core.publishing.registering import CorpusSource, Evidence, register_cartridge

__all__ = [
    "AliasDrift",
    "CompositionGrades",
    "CorpusSource",
    "Erasure",
    "Evidence",
    "GateDecision",
    "Promotion",
    "PromotionGate",
    "decide",
    "delete",
    "export_cartridge",
    "find_drift",
    "import_cartridge",
    "judge_composition",
    "project_alias",
    "promote",
    "record_judged",
    "register_cartridge",
    "rollback",
]
