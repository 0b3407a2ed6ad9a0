"""Train sparse: callbacks for Stable-Baselines3's ``learn()``, and a hook for any other script.

model.learn(100_000, callback=Gradual(sparsity=0.95))
"""

from __future__ import annotations

from prunerl.train.callback import Sparse as Sparse
from prunerl.train.callback import runs
from prunerl.train.checkpoint import Checkpoint as Checkpoint
from prunerl.train.checkpoint import resume as resume
from prunerl.train.hooks import hook as hook
from prunerl.train.method import Change as Change
from prunerl.train.method import Method as Method
from prunerl.train.method import Sight as Sight
from prunerl.train.methods import evolve, gradual, lottery, movement, redo, rlx2, static, surgery
from prunerl.train.shrink import Shrink as Shrink
from prunerl.train.shrink_adaptive import AdaptiveShrink as AdaptiveShrink
from prunerl.train.shrink_schedule import Reached as Reached

Gradual = runs(gradual.Gradual)
Lottery = runs(lottery.Lottery)
Movement = runs(movement.Movement)
ReDo = runs(redo.ReDo)
RigL = runs(evolve.RigL)
RLx2 = runs(rlx2.RLx2)
SET = runs(evolve.SET)
Static = runs(static.Static)
Surgery = runs(surgery.Surgery)

METHODS = ("Gradual", "Lottery", "Movement", "ReDo", "RigL", "RLx2", "SET", "Static", "Surgery")
"""Names of the callbacks that mask weights."""
