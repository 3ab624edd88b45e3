"""A linear program in HiGHS, ready for rows to be added and for being solved from its last basis."""

from __future__ import annotations

import highspy

from .linear import LinearMip

__all__ = ["highs_program"]


def highs_program(mip: LinearMip) -> highspy.Highs:
    """HiGHS, silent and on one thread, holding ``mip`` without its integrality and without its constant."""
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = mip.n_columns, mip.n_rows
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = mip.c, mip.lower, mip.upper
    lp.row_lower_, lp.row_upper_ = mip.row_lower, mip.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = mip.indptr, mip.indices, mip.values
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.passModel(lp)
    return highs
