package h2

// queue holds what came of a body: bytes that have been passed on and are kept in
// case they are needed again, then bytes that have not.
type queue struct {
	pieces [][]byte // each filled up to its length
	from   int      // in the first: what is before it is gone
	at     int      // the piece with the first byte not passed on
	off    int      // where in it
	kept   int      // bytes passed on that are still here
	left   int      // bytes not passed on
}

// append copies b in.
func (q *queue) append(st *stock, b []byte) {
	q.left += len(b)
	for len(b) > 0 {
		n := len(q.pieces) - 1
		if n < 0 || len(q.pieces[n]) == cap(q.pieces[n]) {
			size := largePiece
			if n < 0 && len(b) <= smallPiece {
				size = smallPiece
			}
			q.pieces = append(q.pieces, st.take(size)[:0])
			n++
		}
		p := q.pieces[n]
		m := copy(p[len(p):cap(p)], b)
		q.pieces[n] = p[:len(p)+m]
		b = b[m:]
	}
}

// next is bytes not passed on, all or some.
func (q *queue) next() []byte {
	for q.at < len(q.pieces) && q.off == len(q.pieces[q.at]) && q.at < len(q.pieces)-1 {
		q.at, q.off = q.at+1, 0
	}
	if q.at >= len(q.pieces) {
		return nil
	}
	return q.pieces[q.at][q.off:]
}

// pass says that n bytes of next were passed on.
func (q *queue) pass(n int) {
	q.off += n
	q.left -= n
	q.kept += n
}

// rewind makes all that is here to be passed on again.
func (q *queue) rewind() {
	q.left += q.kept
	q.kept, q.at, q.off = 0, 0, q.from
}

// drop gives back what was passed on.
func (q *queue) drop(st *stock) {
	if q.kept == 0 {
		return
	}
	q.kept = 0
	if q.left == 0 {
		q.reset(st)
		return
	}
	for range q.at {
		st.give(q.pieces[0])
		n := copy(q.pieces, q.pieces[1:])
		q.pieces[n] = nil
		q.pieces = q.pieces[:n]
	}
	q.at, q.from = 0, q.off
}

// reset gives everything back.
func (q *queue) reset(st *stock) {
	for i, p := range q.pieces {
		st.give(p)
		q.pieces[i] = nil
	}
	*q = queue{pieces: q.pieces[:0]}
}
