package diskcache

// key names a block: the bytes from off of the object of that name, n of them, which never change.
type key struct {
	name string
	off  int64
	n    int
}

// place is where a block is, or is being written.
type place struct {
	slot int32
	turn uint64 // its number among all blocks that were ever given a slot
	sum  uint32 // CRC32C; of a block that is being written not known yet
}

// off is where the slot begins in the file.
func (p place) off() int64 { return int64(p.slot) * slotBytes }

// slot is a stretch of the file.
type slot struct {
	key          key
	turn         uint64 // of the block that it has; 0 for none
	sum          uint32
	writing      bool  // and so not in the list, whether or not the block has been forgotten meanwhile
	older, newer int32 // in the list
}

// none is no slot.
const none = int32(-1)

// index knows what is in the slots of a file, and decides what goes. A slot is
//
//	empty --take--> being written --settle--> ready --take, forget, drop--> empty
//
// and stands in the list unless it is being written: the empty ones first, then those that are ready, the least recently used first. Whoever reads a slot asks afterwards
// whether it still has what it had.
type index struct {
	slotsMax  int
	room      int // slots by which the file may grow until it is known anew how much room there is
	slots     []slot
	at        map[key]int32 // blocks that are ready or being written
	oldest    int32
	newest    int32
	turns     uint64
	evictions uint64
}

func newIndex(slotsMax int) index {
	return index{slotsMax: slotsMax, at: make(map[key]int32), oldest: none, newest: none}
}

// find returns where the blocks are, each of which counts as used now; nil if one of them is not ready.
func (x *index) find(keys []key) []place {
	places := make([]place, len(keys))
	for i, k := range keys {
		at, ok := x.at[k]
		if !ok || x.slots[at].writing {
			return nil
		}
		places[i] = place{slot: at, turn: x.slots[at].turn, sum: x.slots[at].sum}
	}
	for _, p := range places {
		x.unlink(p.slot)
		x.linkNewest(p.slot)
	}
	return places
}

// holds reports whether a block that was ready is still where it was.
func (x *index) holds(p place) bool {
	return int(p.slot) < len(x.slots) && x.slots[p.slot].turn == p.turn
}

// has reports whether a block is ready, or being written.
func (x *index) has(k key) bool {
	_, ok := x.at[k]
	return ok
}

// take returns a slot for a block that is not there: an empty one, one more of the file, or that of the block which was not used for longest. It is the caller's until settle. false says that there is none.
func (x *index) take(k key) (place, bool) {
	empty := x.oldest != none && x.slots[x.oldest].turn == 0
	at := x.oldest
	switch {
	case !empty && len(x.slots) < x.slotsMax && x.room > 0:
		x.room--
		at = int32(len(x.slots)) //nolint:gosec // below slotsMax
		x.slots = append(x.slots, slot{})
	case at == none:
		return place{}, false
	default:
		if !empty {
			x.evict(at)
		}
		x.unlink(at)
	}
	x.turns++
	x.slots[at] = slot{key: k, turn: x.turns, writing: true, older: none, newer: none}
	x.at[k] = at
	return place{slot: at, turn: x.turns}, true
}

// settle ends what take began: the block is ready with that checksum, or was not written.
func (x *index) settle(p place, sum uint32, written bool) {
	sl := &x.slots[p.slot]
	sl.writing, sl.sum = false, sum
	switch {
	case sl.turn == 0: // forgotten meanwhile
		x.linkOldest(p.slot)
	case written:
		x.linkNewest(p.slot)
	default:
		x.clear(p.slot)
		x.linkOldest(p.slot)
	}
}

// forget drops a block, if it is there. One that is being written will not be there.
func (x *index) forget(k key) {
	at, ok := x.at[k]
	if !ok {
		return
	}
	x.clear(at)
	if !x.slots[at].writing {
		x.unlink(at)
		x.linkOldest(at)
	}
}

// grant says that the file may grow by so many slots until the next grant; or, below 0, that it has so many too many: then it takes slots from its end, as many as nobody is writing, and returns how many.
func (x *index) grant(slots int64) (cut int) {
	x.room = int(max(0, min(slots, int64(x.slotsMax))))
	for ; slots < 0 && len(x.slots) > 0; slots++ {
		last := int32(len(x.slots) - 1) //nolint:gosec // below slotsMax
		if x.slots[last].writing {
			break
		}
		if x.slots[last].turn != 0 {
			x.evict(last)
		}
		x.unlink(last)
		x.slots = x.slots[:last]
		cut++
	}
	return cut
}

// evict clears a slot for the sake of another block, or of room.
func (x *index) evict(at int32) {
	x.clear(at)
	x.evictions++
}

// clear has a slot have no block any more.
func (x *index) clear(at int32) {
	delete(x.at, x.slots[at].key)
	x.slots[at].key, x.slots[at].turn = key{}, 0
}

func (x *index) linkNewest(at int32) {
	x.slots[at].older, x.slots[at].newer = x.newest, none
	if x.newest != none {
		x.slots[x.newest].newer = at
	} else {
		x.oldest = at
	}
	x.newest = at
}

func (x *index) linkOldest(at int32) {
	x.slots[at].older, x.slots[at].newer = none, x.oldest
	if x.oldest != none {
		x.slots[x.oldest].older = at
	} else {
		x.newest = at
	}
	x.oldest = at
}

func (x *index) unlink(at int32) {
	sl := &x.slots[at]
	if sl.older != none {
		x.slots[sl.older].newer = sl.newer
	} else {
		x.oldest = sl.newer
	}
	if sl.newer != none {
		x.slots[sl.newer].older = sl.older
	} else {
		x.newest = sl.older
	}
}
