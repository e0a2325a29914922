package s3http

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/objectstore"
)

// Limits of a multipart upload.
const (
	partsLive = 4               // of one upload are sent at once
	abortMax  = 5 * time.Second // for an abort, which may begin when the caller's time is over
)

// Upload is a multipart upload of one object as a client library carries it out. Each method is one request, with the
// library's retries. Part is what the store answers to a part, and wants to see again in the end.
type Upload[Part any] interface {
	Begin(ctx context.Context) error
	Send(ctx context.Context, number int, body objectstore.Body) (Part, error) // parts count from 1; concurrent
	Complete(ctx context.Context, parts []Part) error                          // unless the object exists
	Abort(ctx context.Context) error
	Answer(err error) Answer
}

// PutMultipart puts the object of that name by an upload that was not begun yet. Its errors are those of
// [objectstore.Store.Put]. If the answer to the beginning is lost, nobody knows what to abort, and an upload is left.
func PutMultipart[Part any](ctx context.Context, upload Upload[Part], name string, body objectstore.Body) error {
	followed, _ := Follow(ctx)
	if err := upload.Begin(followed); err != nil {
		return stepError(ctx, "begin its upload", name, upload.Answer(err), err)
	}
	parts, err := sendParts(ctx, upload, name, body)
	if err == nil {
		err = complete(ctx, upload, name, parts)
	}
	if err != nil && !errors.Is(err, objectstore.ErrUnknownOutcome) {
		abort(ctx, upload)
	}
	return err
}

// sendParts sends all parts, and returns when the body is not used any more.
func sendParts[Part any](ctx context.Context, upload Upload[Part], name string, body objectstore.Body) ([]Part, error) {
	count := partsOf(body.Size)
	each := (body.Size + count - 1) / count
	parts := make([]Part, count)
	group, sending := errgroup.WithContext(ctx)
	group.SetLimit(partsLive)
	for i := range count {
		group.Go(func() error {
			followed, _ := Follow(sending) // so that the body is free when the attempt is over
			off := i * each
			part, err := upload.Send(followed, int(i+1), body.Range(off, min(each, body.Size-off)))
			if err != nil {
				return stepError(ctx, fmt.Sprintf("send part %d of %d", i+1, count), name, upload.Answer(err), err)
			}
			parts[i] = part
			return nil
		})
	}
	return parts, group.Wait()
}

// complete makes the parts an object. It is believed at its first word only: versitygw says that an attempt succeeded
// while one before it is under way, and may refuse that one.
func complete[Part any](ctx context.Context, upload Upload[Part], name string, parts []Part) error {
	followed, trail := Follow(ctx)
	if err := upload.Complete(followed, parts); err != nil {
		return trail.WriteError(ctx, "put", name, upload.Answer(err), err)
	}
	if _, unsure, _ := trail.outcome(); unsure {
		return fmt.Errorf("put %s: its upload was completed twice: %w", name, objectstore.ErrUnknownOutcome)
	}
	return nil
}

// abort removes what was uploaded, if it can: else it is one of those that are left. It must not be called while a
// completion may be under way, into which MinIO lets it break.
func abort[Part any](ctx context.Context, upload Upload[Part]) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortMax)
	defer cancel()
	_ = upload.Abort(ctx) // as above
}

// partsOf returns how many parts an object of that size has.
func partsOf(size int64) int64 {
	return max(1, (size+objectstore.PartBytesMax-1)/objectstore.PartBytesMax)
}

// PutRequests returns how many requests a Put sends, if multipart uploads are in use or not.
func PutRequests(multipart bool, size int64) int64 {
	if !multipart || size <= objectstore.PartBytesMax {
		return 1
	}
	return partsOf(size) + 2
}
