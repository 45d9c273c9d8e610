"""The instruction set: what each PTX instruction does to registers and memory."""
