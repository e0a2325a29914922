package txns

// Expire lets the upkeep expire ids.
func (c *Coordinator) Expire() { c.expire() }
