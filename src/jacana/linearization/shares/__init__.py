"""Shares: the part of the kernel that some parameter tensors bring, in the form that is cheapest to contract."""

from jacana.linearization.shares.absent import Absent as Absent
from jacana.linearization.shares.formed import Formed as Formed
from jacana.linearization.shares.outer import Outer as Outer
from jacana.linearization.shares.share import Share as Share
from jacana.linearization.shares.share import add_product as add_product
from jacana.linearization.shares.tokens import Tokens as Tokens
from jacana.linearization.shares.viewed import Viewed as Viewed
from jacana.linearization.shares.viewed import Window as Window
