"""Numbers as a person reads them."""


def number(value: float, digits: int = 0) -> str:
    """A number with separated thousands and so many digits after the point."""
    return f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """A share of 1 in per cent; never 0 or 100 % for what is only near to it."""
    if share <= 0 or share >= 1:
        return f"{share:.0%}".replace("%", " %")
    value = 100 * share
    for digits in (0, 1, 2):
        shown = f"{value:.{digits}f}"
        if 0.95 <= value <= 99.5 or float(shown) not in (0, 100):
            return f"{shown} %"
    return "< 0.01 %" if value < 1 else "> 99.99 %"


def counted(count: int, one: str, many: str = "") -> str:
    """How many there are of something: `1 example`, `1,204 examples`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
