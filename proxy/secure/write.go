package secure

// Write writes all of b, waiting for room where there is none. It encrypts no
// more than maxChunk ahead of what the socket takes: that is all a slow peer
// holds. An error is for good; n counts only what was written whole.
func (c *Conn) Write(b []byte) (int, error) {
	switch {
	case c.writeErr != nil:
		return 0, c.writeErr
	case c.phase != established:
		return 0, errNoHandshake
	case c.below.flushing:
		return 0, errTwoWriters
	}
	done := 0
	for done < len(b) {
		chunk := b[done:min(len(b), done+maxChunk)]
		if err := c.writeChunk(chunk); err != nil {
			return done, err
		}
		done += len(chunk)
	}
	return done, nil
}

// Written is how many bytes the socket was given, the handshake's too; 0 where a
// write has failed that nobody waited for.
func (c *Conn) Written() uint64 {
	if c.below.unheard {
		return 0
	}
	return c.below.wrote
}

func (c *Conn) writeChunk(chunk []byte) error {
	if c.below.notified {
		return errEnded
	}
	c.below.reserve(len(chunk) + recordOverhead*(1+len(chunk)/maxPlaintext))
	if _, err := c.tls.Write(chunk); err != nil {
		return c.writeFailed(err)
	}
	return c.writeFailed(c.below.flush())
}

// writeFailed keeps the first error for all that come after.
func (c *Conn) writeFailed(err error) error {
	if c.writeErr == nil {
		c.writeErr = err
	}
	return err
}

// CloseWrite sends close_notify, waiting for room where there is none. The peer
// may go on sending. A Write of another task that is under way ends early.
func (c *Conn) CloseWrite() error {
	switch {
	case c.writeErr != nil:
		return c.writeErr
	case c.phase != established:
		return errNoHandshake
	}
	c.below.notify(c.tls)
	if c.below.flushing {
		return nil // who writes sends it too
	}
	return c.writeFailed(c.below.flush())
}
