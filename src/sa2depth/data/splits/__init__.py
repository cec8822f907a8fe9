"""Which frames belong to which list: published tables, and division by place."""
