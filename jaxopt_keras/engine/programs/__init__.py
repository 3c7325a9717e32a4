"""Programs around programs: groups, loss scaling, ZeRO-1, offload, frozen parameters."""
