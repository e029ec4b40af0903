"""The parts of the trace: what sees the operations, what names them, what they are taken for."""
