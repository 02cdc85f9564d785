"""Operations on adapters: each takes adapters and gives a new one."""
