import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.serialization.StringSerializer;

/** The verbs of {@link Driver} that work with transactions. */
final class Transactions {
    private static final int ABORTED = 3; // of so many transactions, the verb copy aborts one

    private final Map<String, String> flags;
    private final PrintStream out;

    Transactions(Map<String, String> flags, PrintStream out) {
        this.flags = flags;
        this.out = out;
    }

    private KafkaProducer<String, String> producer() {
        Properties config = new Properties();
        config.put("bootstrap.servers", flags.get("--bootstrap"));
        config.put("transactional.id", flags.get("--id"));
        config.put("transaction.timeout.ms", flags.get("--timeout"));
        return new KafkaProducer<>(config, new StringSerializer(), new StringSerializer());
    }

    /** Does what standard input says, step by step. */
    void transact() throws IOException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (KafkaProducer<String, String> producer = producer()) {
            producer.initTransactions();
            out.println("ready");
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                try {
                    step(producer, line.split("\t"));
                    out.println("done");
                } catch (KafkaException e) {
                    // A producer that has failed says so again, with the first reason as the cause.
                    Throwable reason = e.getClass() == KafkaException.class && e.getCause() != null ? e.getCause() : e;
                    out.println("refused\t" + reason.getClass().getSimpleName());
                }
            }
        }
    }

    private static void step(KafkaProducer<String, String> producer, String[] step) {
        switch (step[0]) {
            case "begin" -> producer.beginTransaction();
            case "send" -> producer.send(new ProducerRecord<>(step[1], Integer.parseInt(step[2]), step[3], step[4]));
            case "flush" -> producer.flush();
            case "offset" -> producer.sendOffsetsToTransaction(
                Map.of(new TopicPartition(step[2], Integer.parseInt(step[3])), new OffsetAndMetadata(Long.parseLong(step[4]))),
                step.length == 5
                    ? new ConsumerGroupMetadata(step[1])
                    : new ConsumerGroupMetadata(step[1], Integer.parseInt(step[6]), step[5], Optional.empty()));
            case "commit" -> producer.commitTransaction();
            case "abort" -> producer.abortTransaction();
            default -> throw new IllegalArgumentException("unknown step " + step[0]);
        }
    }

    /** Copies what the consumer gets until standard input ends. */
    void copy(KafkaConsumer<String, String> consumer) throws InterruptedException {
        try (consumer; KafkaProducer<String, String> producer = producer()) {
            producer.initTransactions();
            consumer.subscribe(List.of(flags.get("--topic")));
            Thread end = Driver.endOfInput();
            for (int transaction = 1; end.isAlive();) {
                ConsumerRecords<String, String> records = consumer.poll(Duration.ofMillis(100));
                if (records.isEmpty()) {
                    continue;
                }
                if (copy(consumer, producer, records, transaction)) {
                    records.forEach(each -> Driver.show(out, each));
                } else {
                    rewind(consumer);
                }
                transaction++;
            }
        }
    }

    /** Copies some records in one transaction, and tells whether they were committed. */
    private boolean copy(KafkaConsumer<String, String> consumer, KafkaProducer<String, String> producer,
            ConsumerRecords<String, String> records, int transaction) throws InterruptedException {
        try {
            producer.beginTransaction();
            boolean stall = false;
            for (ConsumerRecord<String, String> each : records) {
                stall |= each.key().equals(flags.get("--stall"));
                producer.send(new ProducerRecord<>(flags.get("--to"), each.partition(), each.key(), each.value()));
            }
            producer.sendOffsetsToTransaction(records.nextOffsets(), consumer.groupMetadata());
            producer.flush();
            if (stall) {
                out.println("stalled");
                new CountDownLatch(1).await();
            }
            if (transaction % ABORTED == 0) {
                producer.abortTransaction();
                return false;
            }
            producer.commitTransaction();
            return true;
        } catch (ProducerFencedException e) {
            throw e;
        } catch (KafkaException e) {
            // The group may have moved on meanwhile.
            producer.abortTransaction();
            return false;
        }
    }

    /** Returns to what the group has committed. */
    private static void rewind(KafkaConsumer<String, String> consumer) {
        Set<TopicPartition> own = consumer.assignment();
        Map<TopicPartition, OffsetAndMetadata> committed = new HashMap<>(consumer.committed(own));
        for (TopicPartition each : own) {
            OffsetAndMetadata next = committed.get(each);
            if (next == null) {
                consumer.seekToBeginning(List.of(each));
            } else {
                consumer.seek(each, next.offset());
            }
        }
    }
}
