"""The loss of a batch of places: block-diagonal attention, and the SID head at what is asked.

torch from the first line: import it late.
"""

from torch import Tensor, nn

from models.language.item_model import ItemModel
from models.training.block_attention import block_keywords
from models.training.target_loss import masks


class ItemLoss(nn.Module):
    """Sum of the cross-entropy over the codes of a batch's targets."""

    def __init__(self, model: ItemModel) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model.lm, "_no_split_modules", None)  # what FSDP may shard as one

    def forward(
        self,
        tokens_BTW: Tensor,
        span_BT: Tensor,
        positions_BT: Tensor,
        source: Tensor,
        question: Tensor,
        codes_nL: Tensor,
    ) -> Tensor:
        """Arguments as in ItemBatch. Returns a scalar, float32."""
        model = self.model
        hidden_BTD = model.base_model(
            inputs_embeds=model.embed(tokens_BTW),
            attention_mask=masks(model.config, span_BT, positions_BT),
            position_ids=positions_BT,
            use_cache=False,
            **block_keywords(model, positions_BT),
        ).last_hidden_state
        hidden_nD = hidden_BTD.flatten(0, 1).index_select(0, source)
        return model.target_losses(model.ask(hidden_nD, question), codes_nL)
