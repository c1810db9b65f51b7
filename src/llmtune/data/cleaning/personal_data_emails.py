"""E-mail addresses in a text."""

import re
from collections.abc import Iterator

_LETTER = "A-Za-z\u00c0-\u058f"  # Latin with accents, Greek, Cyrillic: scripts with spaces between words
_DOMAIN = re.compile(rf"@([{_LETTER}0-9](?:[{_LETTER}0-9.-]{{0,250}})\.[A-Za-z][A-Za-z0-9-]{{1,30}}+)")
_LOCAL_REVERSED = re.compile(rf"[{_LETTER}0-9_+-][{_LETTER}0-9._+-]{{0,63}}")
_LONGEST_LOCAL = 64
_TEMPLATE = "%$}"
_PROGRAMS = {"git", "hg"}
_COMMON_ENDINGS = {"com", "org", "net", "edu", "gov"}
_COUNTRY_ENDINGS = """
    ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd
    cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge
    gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh
    ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw
    mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb
    sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk
    us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw
"""
_OTHER_ENDINGS = """
    academy aero agency app art asia associates bank bar berlin best bio biz blog build business cafe capital care
    careers cash cat center chat city clinic cloud club coach codes coffee community company computer consulting
    contact coop coupons credit dance database day dental design dev digital direct doctor domains earth education
    email energy engineer engineering enterprises estate events example exchange expert family fans farm fashion
    finance fit foundation fun fund games gift global gmbh gold group guide guru hamburg health healthcare help host
    hospital house icu immo info ink institute int international invest jobs koeln land law legal life live llc loan
    london ltd management market marketing media mil mobi moe museum name network news ngo ninja nyc one online
    partners party photo photography photos pictures pizza post press pro properties pub page recipes rent repair
    report restaurant review reviews rocks sale school science services shop site social software solar solutions
    space store studio support systems taxi team tech technology tel tips today tokyo tools top tours town toys trade
    training travel university vip vet video wales wang website wien wiki win wine work works world wtf xyz yoga zone
"""
_ENDINGS = _COMMON_ENDINGS.union(_COUNTRY_ENDINGS.split(), _OTHER_ENDINGS.split())
"""Top-level domains; of the newer ones those in use for mail. Any word would do for `query@key.transpose`."""


def emails(text: str) -> Iterator[tuple[int, int, int]]:
    """Start, place of the `@` and end of each e-mail address.

    Not an address: a matrix product (`x@w.t()`), a user in a URL (`ssh://git@host.org`), a name filled in later
    (`%s@host.org`).
    """
    if "@" not in text:
        return
    for match in _DOMAIN.finditer(text):
        at = match.start()
        end = _domain_end(text, match)
        start = _local_start(text, at) if end else None
        if end and start is not None:
            yield start, at, end


def _local_start(text: str, at: int) -> int | None:
    local = _LOCAL_REVERSED.match(text[max(0, at - _LONGEST_LOCAL) : at][::-1])
    if not local:
        return None
    start = at - local.end()
    before = text[start - 1 : start]
    if before == "\\":  # "\nname@host.org" in code
        start += 1
    name = text[start:at].lstrip(".+-_")
    if not name or (before and before in _TEMPLATE) or text[start - 3 : start] == "://" or name in _PROGRAMS:
        return None
    return at - len(name)


def _domain_end(text: str, match: re.Match[str]) -> int | None:
    """The end of the longest domain with a known ending, without the words that follow a full stop."""
    labels = match[1].split(".")
    while len(labels) > 1:
        ending = labels[-1].lower()
        if (ending in _ENDINGS or ending.startswith("xn--")) and _is_domain(labels):
            end = match.start(1) + len(".".join(labels))
            is_call = text[end : end + 1] in ("(", "[") and ending not in _COMMON_ENDINGS
            return None if is_call else end
        labels.pop()
    return None


def _is_domain(labels: list[str]) -> bool:
    ending = labels[-1]
    if not (ending.islower() or ending.isupper() or ending.istitle()):
        return False
    return all(label and label[0] != "-" and label[-1] != "-" for label in labels)
