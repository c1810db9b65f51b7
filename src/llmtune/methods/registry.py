"""The methods by name."""

from typing import assert_never

from llmtune.config.method import FullConfig, LoraConfig, MethodConfig, QloraConfig, UntrainedConfig
from llmtune.methods.full import FullMethod
from llmtune.methods.lora import LoraMethod
from llmtune.methods.method import Method
from llmtune.methods.qlora import QloraMethod
from llmtune.methods.untrained import UntrainedMethod


def make_method(config: MethodConfig) -> Method:
    """The method that a config describes."""
    match config:
        case FullConfig():
            return FullMethod(config)
        case LoraConfig():
            return LoraMethod(config)
        case QloraConfig():
            return QloraMethod(config)
        case UntrainedConfig():
            return UntrainedMethod()
        case _:
            assert_never(config)
